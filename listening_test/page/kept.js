// Answers that the server has on its disk, but not yet off its machine.
//
// Some machines lose their disk at a restart. Until the server says that an answer is safe, it
// stays in this browser with the server's receipt, and is sent again to a server that lacks it.
// A server that says nothing of safety has a disk that lasts: then nothing is kept.

import { dropDraft } from "./draft.js";
import { insist, pause, store } from "./net.js";

// The disk was lost once more, or another tab sent the answer.
const MEANWHILE = ["no_session", "out_of_order"];

const kept = () => JSON.parse(store.get("kept") ?? "[]");

function keep(bodies) {
  if (bodies.length) store.set("kept", JSON.stringify(bodies)); else store.remove("kept");
}

const without = (body) => kept().filter((one) => one.trial_index !== body.trial_index);

// An answer was acknowledged.
export function keepUntilSafe(body, receipt) {
  if (receipt) keep([...without(body), { ...body, receipt }]);
}

// So are answers to the questionnaire: they come before the first trial, and are safe with it.
export function keepAboutUntilSafe(answers, state) {
  if (state.safe !== undefined) store.set("about", JSON.stringify(answers));
}

// What the server says of the session: what is safe need not be kept.
export function noteSafe(state) {
  if (state.safe === undefined) return;
  store.set("ticket", state.ticket);
  store.set("safe", String(state.safe));
  if (state.safe > 0) store.remove("about");
  keep(kept().filter((body) => body.trial_index > state.safe));
}

export function forget() {
  store.remove("ticket");
  store.remove("safe");
  store.remove("about");
  dropDraft();
  keep([]);
}

// Where the session stands, begun again by its ticket on a server that does not know it any more.
export async function standing(ids, onTrouble) {
  let state;
  try {
    state = await insist("trial", null, onTrouble);
  } catch (error) {
    const ticket = store.get("ticket");
    if (error.code !== "no_session" || !ticket) throw error;
    state = await insist("session", { consent: true, ids, ticket }, onTrouble);
  }
  const about = store.get("about");
  if (state.state === "questionnaire" && about) {
    state = await insist("questionnaire", { answers: JSON.parse(about) }, onTrouble);
  }
  for (;;) {
    const body = kept().find((one) => one.trial_index === state.up);
    if (!body) return state;
    try {
      state = (await insist("rating", body, onTrouble)).next;
    } catch (error) {
      if (MEANWHILE.includes(error.code)) {
        await pause(1000);
        return standing(ids, onTrouble);
      }
      keep(without(body));  // not this session's: no server will ever take it
    }
  }
}
