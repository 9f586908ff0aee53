// The rater's way: consent, questionnaire, instructions, practice, trials, thanks.
//
// The server is the memory: it says which trial is up, and its answers count once it says
// "saved". What is on the screen is put together from clips.js and questions.js.

import { fillQuestionnaire, questionnaireAnswers, restoreAnswers } from "./about.js";
import { Clips } from "./clips.js";
import { keepIds, wayBack } from "./crowd.js";
import { forget, keepAboutUntilSafe, keepUntilSafe, noteSafe, standing } from "./kept.js";
import { draft, dropDraft, keepDraft } from "./draft.js";
import { ask, insist, pause, randomHex, store, uuid, whyLater } from "./net.js";
import { Questions } from "./questions.js";
import { say, speak } from "./strings.js";
import { stopVolume, volumeHeard, volumeWords } from "./volume.js";
import { offerWithdrawal, withdrawing } from "./withdraw.js";

const $ = (id) => document.getElementById(id);
const COPYING_MS = 3000;
let study = null;
let left = false;  // withdrawn: nothing else is shown any more

// ---- what is on the screen
function show(id) {
  if (left && id !== "withdrawn") return;  // an answer that was still on its way
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = section.id !== id;
  }
  // There is something to withdraw as soon as there is a session.
  $("leave").hidden = !store.get("session") || ["wait", "consent"].includes(id);
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
const LABELS = {
  screen: "screen_of", environment: "room_of", one: "practice", practice: "practice_of", trial: "clip_of",
};
// Where a page has several clips, it is not one of them.
const OF_PAGES = { one: "page_practice", practice: "page_practice_of", trial: "page_of" };
let trial = null;
let clips = null;
let questions = null;
let times = null;  // of the trial on the screen
let sending = false;

function showTrial(state) {
  clips?.stop();
  trial = state;
  times = { shownAt: performance.now(), firstPlay: null, hidden: 0, hiddenAt: null };
  const practice = state.state === "practice";
  const room = state.state === "environment";
  const screen = room || state.state === "screen";
  const kind = practice && state.total === 1 ? "one" : state.state;
  const label = say((study.clips > 1 && OF_PAGES[kind]) || LABELS[kind], state);
  $("heading").textContent = label;
  document.title = `${label} – ${study.title}`;
  $("practice-note").hidden = !practice;
  $("screen-note").hidden = state.state !== "screen";
  $("room-note").hidden = !room;
  $("more").hidden = screen;
  $("form").reset();
  $("more").open = false;
  trouble("");
  clips = new Clips($("clips"), state.clips,
    { names: screen ? [""] : names(state.clips.length), inTurn: study.in_turn && !screen,
      onChange: opened, onTrouble: notPlayed });
  const asked = screen ? { ...study, questions: [translated(state.question)] } : study;
  questions = new Questions($("questions"), asked, clips, opened);
  questions.enable(false);
  const filled = draft(state.trial_index);
  if (filled) {
    questions.restore(filled.answers, filled.changes);
    $("comment").value = filled.comment;
    $("more").open = Boolean(filled.comment);
  }
  clips.changed();
  show("trial");
}

$("form").addEventListener("input", () => keepDraft(trial.trial_index,
  { answers: questions.answers, changes: questions.changes, comment: $("comment").value }));

// A screen's question in the page's language.
function translated({ text, options }) {
  const own = (english) => study.screens[english] ?? english;
  return { text: own(text), options: options.map(([value, label]) => [value, own(label)]) };
}

function names(n) {
  if (study.method === "mushra") {
    return Array.from({ length: n },
      (_, i) => (i ? say("numbered", { number: i }) : say("reference")));
  }
  if (study.in_turn) return [say("first"), say("second")];
  return study.names.length ? study.names : [""];
}

// After each start and end of a clip, and each answer: what is open now.
function opened() {
  if (!questions) return;
  if (clips.heardSome) times.firstPlay ??= performance.now();
  if (clips.complete && !sending) questions.enable(true);
  $("next").disabled = !(questions.enabled && questions.complete);
  const listen = clips.clips.length > 1 ? "listen_all" : "listen";
  const text = say(clips.complete ? "rate_now" : listen);
  if ($("hint").textContent !== text) $("hint").textContent = text;
}

async function notPlayed() {
  let busy = false;
  try {
    // Another tab may have rated this trial: then it is closed, and the next one is up.
    const state = await insist("trial", null, (error) => {
      if (error.code !== "too_many") throw error;
      busy = true;
      trouble(say("busy"));
    });
    if (state.clips?.[0] !== trial.clips[0]) { await resume(); return; }
    if (busy) { trouble(""); await clips.toggle(); return; }
  } catch (error) {
    if (error.code === "no_session") { await resume(); return; }
    // The server cannot be reached: said below.
  }
  trouble(say("not_played"));
}

document.addEventListener("visibilitychange", () => {
  if (!times) return;
  if (document.hidden) times.hiddenAt = performance.now();
  else if (times.hiddenAt !== null) {
    times.hidden += performance.now() - times.hiddenAt;
    times.hiddenAt = null;
  }
});

function rating() {
  const now = performance.now();
  return {
    rating_id: uuid(),
    trial_index: trial.trial_index,
    clips: clips.claims(),
    answers: questions.answers,
    rt_ms: Math.round(now - times.shownAt),
    first_play_to_submit_ms: Math.round(now - times.firstPlay),
    hidden_ms: Math.round(times.hidden),
    changed_n: Math.max(0, questions.changes - questions.answers.length),
    comment: $("comment").value,
    client_utc: new Date().toISOString(),
    ui_lang: study.language,
  };
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending || !questions.enabled || !questions.complete) return;
  clips.stop();
  const body = rating();
  store.set("pending", JSON.stringify(body));
  await send(body);
});

// Sends a trial's answers until the server has them on disk; then, and only then, goes on.
async function send(body) {
  sending = true;
  $("next").disabled = true;
  questions?.enable(false);  // what is on the screen stays what is being sent
  savedLine(say("saving"));
  try {
    const reply = await insist("rating", body, notSaved);
    if (left) return;
    keepUntilSafe(body, reply.receipt);
    store.remove("pending");
    dropDraft();
    savedLine(say("saved"));
    sending = false;
    enter(reply.next);
  } catch (error) {
    if (left) return;
    // Refused for good, and nothing stored: say so, and do what the server says is up.
    store.remove("pending");
    sending = false;
    savedLine(say("not_saved"), true);
    await resume();
    const why = LOST.includes(error.code) ? say("restarted") : error.message;
    trouble([...LOST, "not_heard"].includes(error.code) && again(body)
      ? say("once_more", { why }) : error.message);
  }
}

// What a server answers that lost its disk since it sent the clip, when the trial is still up.
const LOST = ["no_session", "out_of_order", "foreign_clip"];

// Has the clips of answers, which are in the form still, heard again; false if they are not up.
function again(body) {
  if ($("trial").hidden || trial.trial_index !== body.trial_index) return false;
  clips.renew(body.rating_id);
  return true;
}

function notSaved(error) {
  savedLine(say("not_saved_yet"), true);
  const why = { not_saved: "why_disk", late: "why_late", behind: "why_late",
    too_many: "why_busy" }[error.code] ?? "why_gone";
  const text = say("keep_open", { why: say(why) });
  if ($("trial").hidden) waiting(text); else trouble(text);
}

// ---- keys: digits rate, space plays, Enter goes on; off by the checkbox (WCAG 2.1.4)
$("keys").checked = store.get("keys") !== "off";
$("keys").addEventListener("change", () => store.set("keys", $("keys").checked ? "on" : "off"));

document.addEventListener("keydown", (event) => {
  if ($("trial").hidden || !$("keys").checked || withdrawing()) return;
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const at = event.target;
  if (at.matches("textarea")) return;
  if (/^[1-9]$/.test(event.key)) {
    event.preventDefault();
    if (!sending) questions.press(Number(event.key));
  } else if (event.key === " " && !event.repeat) {
    // A button, a checkbox or an unticked answer in focus has its own use for the space bar.
    if (at.matches("button, summary, input:not(:checked), input[type=checkbox]")) return;
    event.preventDefault();
    trouble("");
    clips.toggle(clips.sounding >= 0 ? clips.sounding : clips.next());
  } else if (event.key === "Enter" && !at.matches("button, summary")) {
    event.preventDefault();
    if (!$("next").disabled) $("form").requestSubmit();
  }
});

// ---- the way through
function enter(state) {
  if (left) return;  // an answer that was still on its way: nothing of it is kept
  noteSafe(state);
  if (state.state === "copying") {
    clips?.stop();
    waiting(say(state.then === "done" ? "copying_code" : "copying"));
    setTimeout(() => resume(), COPYING_MS);
  } else if (state.state === "done") {
    clips?.stop();
    $("code").textContent = state.code;
    wayBack($("back"), state, study.platform);
    document.title = `${say("thanks")} – ${study.title}`;
    show("thanks");
  } else if (state.state === "screened_out") {
    clips?.stop();
    $("screened-text").textContent = say(state.check ? "screened_room" : "screened_text");
    document.title = `${say("screened_title")} – ${study.title}`;
    wayBack($("screened-back"), state, study.platform);
    show("screened");
  } else if (state.state === "questionnaire") {
    document.title = `${say("about")} – ${study.title}`;
    restoreAnswers($("about-form"), draft("about") ?? {});
    show("about");
  } else {
    showTrial(state);
  }
}

const delayed = (error) => waiting(whyLater(error));

const ids = () => JSON.parse(store.get("ids") ?? "{}");

async function resume() {
  if (left) return;
  try {
    const state = await standing(ids(), delayed);
    // The questionnaire came before the instructions: they may not have been seen yet.
    if (study.questionnaire.length && state.trial_index === 1 && !store.get("begun")) {
      noteSafe(state);
      show("instructions");
    } else { enter(state); }
  } catch (error) {
    // The server does not know this session (or not any more): begin at the beginning.
    if (error.code !== "no_session") { waiting(error.message); return; }
    forget();
    welcome();
  }
}

// The languages of the study, named in themselves; the browser's own comes first.
function offerLanguages() {
  const codes = study.languages.map((words) => words.language);
  const wished = [store.get("language"), ...navigator.languages, codes[0]].filter(Boolean);
  const first = (tag) => tag.toLowerCase().split("-")[0];
  const code = wished.flatMap((tag) => [codes.find((one) => one === tag),
    codes.find((one) => first(one) === first(tag))]).find(Boolean);
  $("language").replaceChildren(...codes.map((one) => Object.assign(
    document.createElement("option"), { value: one, lang: one, textContent:
      new Intl.DisplayNames([one], { type: "language" }).of(one) })));
  $("language").value = code;
  $("languages").hidden = codes.length < 2;
  $("language").addEventListener("change", () => {
    store.set("language", $("language").value);
    choose($("language").value);
    fill();
  });
  choose(code);
}

function choose(code) {
  const canonical = study.languages[0].questionnaire;
  const words = study.languages.find((one) => one.language === code);
  // An answer is kept in the study's first language, whatever the page shows.
  study = { ...study, ...words, questionnaire: words.questionnaire.map(
    (asked, i) => ({ ...asked, values: canonical[i].choices })) };
}

function fill() {
  speak(study.language);
  document.title = study.title;
  $("place").textContent = study.title;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = study[element.dataset.text] ?? "";
  }
  const { trials, clips: each, minutes } = study;
  const long = `${each > 1 ? "length_pages" : "length"}${minutes === 1 ? "_one" : ""}`;
  $("length").textContent = say(long, { n: trials, each, minutes });
  const checked = study.headphones ? (study.room ? "volume_both" : "volume_screen") : study.room
    && "volume_room";
  $("first-step").textContent = say(checked || (study.practice ? "volume_practice" : "volume"));
  $("comment").maxLength = study.max_comment;
  fillQuestionnaire($("about-questions"), study);
  volumeWords();
}

function welcome() {
  // A platform's participant may have begun in another browser: the server will know.
  if (study.closed && !study.platform) waiting(say("closed"));
  else show("consent");
}

async function loadStudy() {
  for (;;) {
    try { return await ask("study"); } catch (error) {
      if (error.final) throw error;
      waiting(error.code === "preparing" ? say("preparing") : error.message);
      await pause(3000);
    }
  }
}

// With consent the session begins: at once where there is a questionnaire to keep with it.
async function begin() {
  waiting(say("moment"));
  // Made here, before it is sent: asking again after a lost answer begins no second session.
  if (!store.get("session")) store.set("session", randomHex(24));
  try {
    const body = { consent: true, ids: ids(), touch: navigator.maxTouchPoints > 0,
      ui_lang: study.language };
    enter(await insist("session", body, delayed));
  } catch (error) { waiting(error.code === "closed" ? say("closed") : error.message); }
}

$("agree").addEventListener("click", () => {
  if (study.questionnaire.length) begin(); else show("instructions");
});
$("begin").addEventListener("click", async () => {
  stopVolume();
  store.set("begun", "yes");
  if (store.get("ticket")) { waiting(say("moment")); await resume(); } else await begin();
  // Only a note beside the session: nothing waits for it, and nothing hangs on it.
  if (volumeHeard() && store.get("session")) ask("volume", {}).catch(() => {});
});

$("about-form").addEventListener("input", () => {
  keepDraft("about", questionnaireAnswers($("about-form")));
});

$("about-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (sending) return;
  sending = true;
  $("about-saved").textContent = say("saving");
  const answers = questionnaireAnswers($("about-form"));
  try {
    const state = await insist("questionnaire", { answers }, (error) => {
      $("about-saved").textContent = whyLater(error);
    });
    if (left) return;
    dropDraft();
    keepAboutUntilSafe(answers, state);
    noteSafe(state);
    $("about-saved").textContent = "";
    show("instructions");
  } catch (error) {
    $("about-saved").textContent = "";
    if (error.code === "no_session") {
      await resume();  // the form keeps what is in it
      if (!$("about").hidden) $("about-saved").textContent = say("restarted");
    } else { $("about-saved").textContent = error.message; }
  } finally { sending = false; }
});

offerWithdrawal(() => clips?.stop(), () => {
  left = true;
  // Whoever is at the end keeps the code: leaving costs no pay.
  if (!$("thanks").hidden) $("withdrawn").append($("code-part"));
  savedLine("");
  document.title = `${say("withdrawn_title")} – ${study.title}`;
  show("withdrawn");
});

async function start() {
  try { study = await loadStudy(); } catch (error) { waiting(error.message); return; }
  offerLanguages();
  fill();
  keepIds(study.platform);
  const pending = store.get("pending");
  if (pending) {
    waiting(say("saving_last"));
    await send(JSON.parse(pending));
  } else if (store.get("session")) {
    await resume();
  } else {
    welcome();
  }
}

start();
