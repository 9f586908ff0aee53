// What this page keeps in the browser, and how it talks to the server.
//
// Two things are kept: the session key, and answers that are not confirmed yet, which are sent
// again with the same key until they are.

import { say } from "./strings.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
const ANSWER_MS = 20000;
const name = `listening-test/${location.pathname}`;

// ---- what the browser remembers (a private window may refuse: then only until reload)
const memory = {};
export const store = {
  get(key) {
    try { return localStorage.getItem(`${name}/${key}`) ?? memory[key] ?? null; }
    catch { return memory[key] ?? null; }
  },
  set(key, value) {
    memory[key] = value;
    try { localStorage.setItem(`${name}/${key}`, value); } catch { /* kept in memory */ }
  },
  remove(key) {
    delete memory[key];
    try { localStorage.removeItem(`${name}/${key}`); } catch { /* was in memory only */ }
  },
  clear() {  // all of this study
    for (const key of Object.keys(memory)) delete memory[key];
    try {
      const kept = Object.keys(localStorage).filter((key) => key.startsWith(`${name}/`));
      for (const key of kept) localStorage.removeItem(key);
    } catch { /* was in memory only */ }
  },
};

export function randomHex(bytes) {
  const values = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(values, (v) => v.toString(16).padStart(2, "0")).join("");
}

export function uuid() {  // version 4; crypto.randomUUID is missing on plain http
  const h = randomHex(16);
  const variant = (8 + (parseInt(h[16], 16) % 4)).toString(16);
  return `${h.slice(0, 8)}-${h.slice(8, 12)}-4${h.slice(13, 16)}-${variant}${h.slice(17, 20)}-${h.slice(20)}`;
}

// ---- talking to the server
export async function ask(path, body) {
  const key = store.get("session");
  const safe = store.get("safe");  // a server that knows less than this has to catch up first
  let response;
  let reply = null;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      cache: "no-store",
      headers: {
        ...(key && { "X-Session": key }), ...(safe && { "X-Safe": safe }), ...(body && { "Content-Type": "application/json" }),
      },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout?.(ANSWER_MS),  // old browsers wait on
    });
    reply = await response.json();
  } catch (error) {
    if (error.name === "TimeoutError") {
      const late = new Error(say("late_answer", { seconds: ANSWER_MS / 1000 }));
      throw Object.assign(late, { code: "late" });
    }
    if (!response) throw error;
    // A proxy's page, or an answer cut off: nothing that the server said.
  }
  if (!response.ok || !reply) {
    const error = new Error(reply?.message || say("answered", { status: response.status }));
    error.code = reply?.error;
    // What the server refused for good is not tried again; anything else may pass.
    error.final = response.status < 500 && response.status !== 429 && Boolean(error.code);
    error.after = 1000 * (Number(response.headers.get("Retry-After")) || 0);
    throw error;
  }
  return reply;
}

// Why it takes longer: the server says that it goes on by itself, or cannot be reached.
const LATER = { no_place: "delayed", behind: "delayed", not_saved: "delayed", too_many: "busy" };
export const whyLater = (error) => say(LATER[error.code] ?? "trying");

export const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

export async function insist(path, body, onTrouble) {
  for (let n = 0; ; n += 1) {
    try { return await ask(path, body); } catch (error) {
      if (error.final) throw error;
      onTrouble(error);
      await pause(Math.max(error.after ?? 0, RETRY_MS[Math.min(n, RETRY_MS.length - 1)]));
    }
  }
}
