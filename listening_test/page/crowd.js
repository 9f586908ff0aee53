// Where a platform sends raters from, and back to.
//
// Its ids stand in the address: they are kept for the consent, and taken out of the address, so that
// no history or screenshot shows them.

import { store } from "./net.js";
import { say } from "./strings.js";

// The first of each is who comes, and the second which submission of theirs it is.
const KEPT = {
  prolific: ["PROLIFIC_PID", "SESSION_ID", "STUDY_ID"],
  mturk: ["workerId", "assignmentId", "hitId", "turkSubmitTo"],
};
const MTURK_HOSTS = ["https://www.mturk.com", "https://workersandbox.mturk.com"];

export function keepIds(platform) {
  const names = KEPT[platform];
  if (!names) return;
  const given = new URLSearchParams(location.search);
  const ids = {};
  for (const name of names) if (given.has(name)) ids[name] = given.get(name);
  if (Object.keys(ids).length) {
    const { turkSubmitTo, ...sent } = ids;
    const before = JSON.parse(store.get("ids") ?? "{}")[names[0]];
    // Somebody else at this browser: the session in it is not theirs.
    if (before && ids[names[0]] && ids[names[0]] !== before) store.clear();
    store.set("ids", JSON.stringify(sent));
    if (turkSubmitTo) store.set("submit-to", turkSubmitTo);
  }
  history.replaceState(null, "", location.pathname);
}

function button(text, properties) {
  return Object.assign(document.createElement("button"),
    { className: "main", textContent: text, ...properties });
}

// Fills `place` with the way back to the platform, or on to the next rater at a lab's computer; it
// stays empty where there is none.
export function wayBack(place, state, platform) {
  place.replaceChildren();
  if (platform === "lab") {
    const next = button(say("next_rater"), { type: "button" });
    next.addEventListener("click", () => { store.clear(); location.reload(); });
    place.append(next);
  } else if (state.back) {
    place.append(Object.assign(document.createElement("a"),
      { className: "main", href: state.back, textContent: say("back") }));
  } else if (state.submit) {
    const host = store.get("submit-to");
    if (!MTURK_HOSTS.includes(host)) return;  // not an address that MTurk gives
    const { assignmentId } = JSON.parse(store.get("ids") ?? "{}");
    // One session is one assignment's: who accepts another has taken part already.
    if (store.get("ended-for") === null) store.set("ended-for", assignmentId ?? "");
    if (store.get("ended-for") !== (assignmentId ?? "")) {
      place.append(Object.assign(document.createElement("p"), { textContent: say("taken") }));
      return;
    }
    const form = Object.assign(document.createElement("form"),
      { method: "post", action: `${host}/mturk/externalSubmit` });
    for (const [name, value] of [["assignmentId", assignmentId], ["code", state.code]]) {
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
    }
    form.append(button(say("submit"), { type: "submit" }));
    place.append(form);
  }
}
