// Where a platform sends raters from, and back to.
//
// Its ids stand in the address: they are kept for the consent, and taken out of the address, so that
// no history or screenshot shows them.

import { store } from "./net.js";
import { say } from "./strings.js";

const KEPT = {
  prolific: ["PROLIFIC_PID", "STUDY_ID", "SESSION_ID"],
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
    store.set("ids", JSON.stringify(sent));
    if (turkSubmitTo) store.set("submit-to", turkSubmitTo);
  }
  history.replaceState(null, "", location.pathname);
}

// Fills `place` with the way back to the platform; it stays empty where there is none.
export function wayBack(place, state) {
  place.replaceChildren();
  if (state.back) {
    place.append(Object.assign(document.createElement("a"),
      { className: "main", href: state.back, textContent: say("back") }));
  } else if (state.submit) {
    const host = store.get("submit-to");
    if (!MTURK_HOSTS.includes(host)) return;  // not an address that MTurk gives
    const form = Object.assign(document.createElement("form"),
      { method: "post", action: `${host}/mturk/externalSubmit` });
    const ids = JSON.parse(store.get("ids") ?? "{}");
    for (const [name, value] of [["assignmentId", ids.assignmentId], ["code", state.code]]) {
      form.append(Object.assign(document.createElement("input"), { type: "hidden", name, value }));
    }
    form.append(Object.assign(document.createElement("button"),
      { type: "submit", className: "main", textContent: say("submit") }));
    place.append(form);
  }
}
