// The rater's way: consent, instructions, practice, clips, thanks.
//
// The server is the memory: it says which clip is up, and a rating counts once it answers
// "saved". This page keeps two things of its own in the browser: the session key, and a rating
// that is not confirmed yet, which it sends again with the same key until it is.

const LEVELS = [5, 4, 3, 2, 1];
const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
const ANSWER_MS = 20000;
const $ = (id) => document.getElementById(id);
const name = `listening-test/${location.pathname}`;

// ---- what the browser remembers (a private window may refuse: then only until reload)
const memory = {};
const store = {
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
};

function randomHex(bytes) {
  const values = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(values, (v) => v.toString(16).padStart(2, "0")).join("");
}

function uuid() {  // version 4; crypto.randomUUID is missing on plain http
  const h = randomHex(16);
  const variant = (8 + (parseInt(h[16], 16) % 4)).toString(16);
  return `${h.slice(0, 8)}-${h.slice(8, 12)}-4${h.slice(13, 16)}-${variant}${h.slice(17, 20)}-${h.slice(20)}`;
}


// ---- talking to the server
async function ask(path, body) {
  const key = store.get("session");
  let response;
  let reply = null;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      cache: "no-store",
      headers: {
        ...(key && { "X-Session": key }), ...(body && { "Content-Type": "application/json" }),
      },
      body: body && JSON.stringify(body),
      signal: AbortSignal.timeout?.(ANSWER_MS),  // old browsers wait on
    });
    reply = await response.json();
  } catch (error) {
    if (error.name === "TimeoutError") {
      const late = new Error(`The server did not answer within ${ANSWER_MS / 1000} seconds.`);
      throw Object.assign(late, { code: "late" });
    }
    if (!response) throw error;
    // A proxy's page, or an answer cut off: nothing that the server said.
  }
  if (!response.ok || !reply) {
    const error = new Error(reply?.message || `The server answered ${response.status}.`);
    error.code = reply?.error;
    // What the server refused for good is not tried again; anything else may pass.
    error.final = response.status < 500 && response.status !== 429 && Boolean(error.code);
    throw error;
  }
  return reply;
}

const pause = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });

async function insist(path, body, onTrouble) {
  for (let n = 0; ; n += 1) {
    try { return await ask(path, body); } catch (error) {
      if (error.final) throw error;
      onTrouble(error);
      await pause(RETRY_MS[Math.min(n, RETRY_MS.length - 1)]);
    }
  }
}

// ---- what is on the screen
let study = null;

function show(id) {
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = section.id !== id;
  }
  const heading = $(id).querySelector("h1");
  heading.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function waiting(text) {
  $("wait-text").textContent = text;
  if ($("wait").hidden) show("wait");
}

function savedLine(text, bad = false) {
  $("saved").textContent = text;
  $("saved").classList.toggle("bad", bad);
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// ---- one trial
const audio = $("audio");
let trial = null;
let heard = null;  // counters of the trial on the screen
let sending = false;
let fromStart = false;  // play was pressed, and the sound has not begun

function freshCounters() {
  return {
    plays: 0, listened: 0, from: null, complete: false, shownAt: performance.now(),
    firstPlay: null, hidden: 0, hiddenAt: null, changes: 0,
  };
}

function showTrial(state) {
  trial = state;
  heard = freshCounters();
  const practice = state.state === "practice";
  const several = state.total > 1 ? ` ${state.number} of ${state.total}` : "";
  const label = practice ? `Practice clip${several}` : `Clip ${state.number} of ${state.total}`;
  $("heading").textContent = label;
  document.title = `${label} – ${study.title}`;
  $("practice-note").hidden = !practice;
  $("form").reset();
  $("more").open = false;
  $("scale").disabled = true;
  $("next").disabled = true;
  $("hint").textContent = "Listen to the whole clip, then rate it.";
  trouble("");
  playing(false);
  audio.src = `clip/${state.clip}`;
  show("trial");
}

function playing(on) {
  $("play").classList.toggle("playing", on);
  const again = heard && heard.complete ? "Play again" : "Play";
  $("play-word").textContent = on ? "Stop" : again;
}

function countListened() {
  if (heard && heard.from !== null) {
    heard.listened += Math.max(0, audio.currentTime - heard.from);
    heard.from = null;
  }
}

async function togglePlay() {
  if (!audio.paused) { audio.pause(); return; }
  trouble("");
  if (audio.error) audio.load();  // it stays broken until it is asked for again
  audio.currentTime = 0;
  fromStart = true;
  try { await audio.play(); } catch (error) {
    if (error.name !== "AbortError") await notPlayed();
  }
}

async function notPlayed() {
  try {
    // Another tab may have rated this clip: then it is closed, and the next one is up.
    const state = await ask("trial");
    if (state.clip !== trial.clip) { enter(state); return; }
  } catch { /* the server cannot be reached: said below */ }
  trouble("The clip could not be played. Check your connection, then press Play again.");
}

audio.addEventListener("playing", () => {
  if (heard.from === null) {
    // A busy device says this late, when the sound has been running for a while already.
    heard.from = fromStart ? 0 : audio.currentTime;
    fromStart = false;
    heard.plays += 1;
    heard.firstPlay ??= performance.now();
  }
  playing(true);
});
audio.addEventListener("pause", () => { countListened(); playing(false); });
audio.addEventListener("ended", () => {
  countListened();
  // From its start to its end: the button always starts at 0, and there is no way to seek.
  heard.complete = true;
  playing(false);
  if ($("scale").disabled && !sending) {
    $("scale").disabled = false;
    $("next").disabled = !chosen();
    $("hint").textContent = "You can rate it now, or play it again.";
  }
});

document.addEventListener("visibilitychange", () => {
  if (!heard) return;
  if (document.hidden) heard.hiddenAt = performance.now();
  else if (heard.hiddenAt !== null) {
    heard.hidden += performance.now() - heard.hiddenAt;
    heard.hiddenAt = null;
  }
});

const chosen = () => document.querySelector("#answers input:checked");

function choose(score) {
  const input = document.querySelector(`#answers input[value="${score}"]`);
  if ($("scale").disabled || sending) return;
  if (!input.checked) {
    input.checked = true;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  }
}

$("answers").addEventListener("change", () => {
  heard.changes += 1;
  $("next").disabled = false;
});

function rating(score) {
  const now = performance.now();
  return {
    rating_id: uuid(),
    clip: trial.clip,
    trial_index: trial.trial_index,
    score,
    plays: heard.plays,
    listened_ms: Math.round(1000 * heard.listened),
    rt_ms: Math.round(now - heard.shownAt),
    first_play_to_submit_ms: Math.round(now - heard.firstPlay),
    hidden_ms: Math.round(heard.hidden),
    changed_n: Math.max(0, heard.changes - 1),
    comment: $("comment").value,
    client_utc: new Date().toISOString(),
    ui_lang: document.documentElement.lang,
  };
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending || !chosen() || $("scale").disabled) return;
  audio.pause();
  const body = rating(Number(chosen().value));
  store.set("pending", JSON.stringify(body));
  await send(body);
});

// Sends a rating until the server has it on disk; then, and only then, goes on.
async function send(body) {
  sending = true;
  $("next").disabled = true;
  $("scale").disabled = true;  // what is on the screen stays what is being sent
  savedLine("saving …");
  try {
    const reply = await insist("rating", body, notSaved);
    store.remove("pending");
    savedLine("saved ✓");
    sending = false;
    enter(reply.next);
  } catch (error) {
    // Refused for good, and nothing stored: say so, and do what the server says is up.
    store.remove("pending");
    sending = false;
    savedLine("not saved", true);
    await resume();
    trouble(error.code === "not_heard" && keep(body)
      ? `${error.message} Your answer is still here: play the clip once more, to its end, and `
        + "press Next."
      : error.message);
  }
}

// Puts an answer back into the form of its trial, and has the clip sent anew, since the server
// counts from there (a browser would play the copy it has); false if the trial is not up.
function keep(body) {
  if ($("trial").hidden || trial.clip !== body.clip) return false;
  document.querySelector(`#answers input[value="${body.score}"]`).checked = true;
  $("comment").value = body.comment;
  $("more").open = Boolean(body.comment);
  heard.changes = 1 + body.changed_n;
  audio.src = `clip/${trial.clip}?again=${body.rating_id}`;
  return true;
}

const NOT_SAVED = {
  not_saved: "The server could not write it",
  late: "The server does not answer in time",
};

function notSaved(error) {
  savedLine("not saved yet", true);
  const why = NOT_SAVED[error.code] ?? "The server cannot be reached";
  const text = `Your last rating is not saved yet. ${why}. Keep this page open: it tries again `
    + "by itself.";
  if ($("trial").hidden) waiting(text); else trouble(text);
}

// ---- keys: digits rate, space plays, Enter goes on; off by the checkbox (WCAG 2.1.4)
$("keys").checked = store.get("keys") !== "off";
$("keys").addEventListener("change", () => store.set("keys", $("keys").checked ? "on" : "off"));

document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || !$("keys").checked) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = event.target;
  if (at.matches("textarea")) return;
  if (/^[1-5]$/.test(event.key)) {
    event.preventDefault();
    choose(Number(event.key));
  } else if (event.key === " " && !event.repeat) {
    // A button, a checkbox or an unticked answer in focus has its own use for the space bar.
    if (at.matches("button, summary, input:not(:checked), input[type=checkbox]")) return;
    event.preventDefault();
    togglePlay();
  } else if (event.key === "Enter" && !at.matches("button, summary")) {
    event.preventDefault();
    if (!$("next").disabled) $("form").requestSubmit();
  }
});
$("play").addEventListener("click", togglePlay);

// ---- the way through
function enter(state) {
  if (state.state === "done") {
    $("code").textContent = state.code;
    document.title = `Thank you – ${study.title}`;
    show("thanks");
  } else {
    showTrial(state);
  }
}

async function resume() {
  try {
    enter(await insist("trial", null,
      () => waiting("The server cannot be reached. Trying again …")));
  } catch (error) {
    // The server does not know this session (or not any more): begin at the beginning.
    if (error.code !== "no_session") { waiting(error.message); return; }
    show("consent");
  }
}

function fill() {
  document.documentElement.lang = study.language;
  document.title = study.title;
  $("place").textContent = study.title;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = study[element.dataset.text];
  }
  const minutes = Math.max(1, Math.round(study.clips / 6));
  $("length").textContent = `${study.clips} clips, about ${minutes} `
    + `${minutes === 1 ? "minute" : "minutes"}. You can pause at any time: this browser `
    + "remembers where you were.";
  $("first-step").textContent = study.practice
    ? "First comes a clip for practice. Use it to set a comfortable volume."
    : "Set a comfortable volume at the first clip, and then leave it.";
  $("comment").maxLength = study.max_comment;
  for (const level of LEVELS) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"),
      { type: "radio", name: "score", value: level });
    const digit = Object.assign(document.createElement("span"),
      { className: "digit", textContent: level });
    const word = Object.assign(document.createElement("span"),
      { textContent: study.labels[LEVELS.indexOf(level)] });
    label.append(input, digit, word);
    $("answers").append(label);
  }
}

async function loadStudy() {
  for (;;) {
    try { return await ask("study"); } catch (error) {
      if (error.final) throw error;
      waiting(error.code === "preparing" ? `${error.message} This page goes on by itself.`
        : error.message);
      await pause(3000);
    }
  }
}

$("agree").addEventListener("click", () => show("instructions"));
$("begin").addEventListener("click", async () => {
  waiting("One moment …");
  // Made here, before it is sent: asking again after a lost answer begins no second session.
  if (!store.get("session")) store.set("session", randomHex(24));
  enter(await insist("session", { consent: true },
    () => waiting("The server cannot be reached. Trying again …")));
});

async function start() {
  try { study = await loadStudy(); } catch (error) { waiting(error.message); return; }
  fill();
  const pending = store.get("pending");
  if (pending) {
    waiting("Saving your last rating …");
    await send(JSON.parse(pending));
  } else if (store.get("session")) {
    await resume();
  } else {
    show("consent");
  }
}

start();
