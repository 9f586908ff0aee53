// What is filled in and not sent yet: a reload or a crash of the browser takes none of it.
//
// There is one at a time, of the trial with that number or of the questionnaire.

import { store } from "./net.js";

export function keepDraft(of, filled) { store.set("draft", JSON.stringify({ of, filled })); }

export function draft(of) {
  const kept = JSON.parse(store.get("draft") ?? "null");
  return kept?.of === of ? kept.filled : null;
}

export function dropDraft() { store.remove("draft"); }
