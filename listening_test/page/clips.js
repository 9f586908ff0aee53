// The clips of one trial: players without length or position, and what was heard of each.
//
// A clip always starts at 0 and cannot be sought, so "ended" means heard from start to end. Only
// one sounds at a time. With `inTurn` one button plays all, a short gap between.

import { say } from "./strings.js";

const GAP_MS = 700;  // P.800 Annex D: 0.5 to 1 second

class Clip {
  constructor(token, changed) {
    this.token = token;
    this.audio = Object.assign(document.createElement("audio"), { preload: "auto" });
    this.audio.src = `clip/${token}`;
    this.plays = 0;
    this.listened = 0;
    this.complete = false;
    this.from = null;
    this.fromStart = false;  // play was pressed, and the sound has not begun
    this.audio.addEventListener("playing", () => {
      if (this.from === null) {
        // A busy device says this late, when the sound has been running for a while already.
        this.from = this.fromStart ? 0 : this.audio.currentTime;
        this.fromStart = false;
        this.plays += 1;
      }
      changed();
    });
    this.audio.addEventListener("pause", () => { this.count(); changed(); });
    this.audio.addEventListener("ended", () => { this.count(); this.complete = true; changed(); });
  }

  count() {
    if (this.from === null) return;
    this.listened += Math.max(0, this.audio.currentTime - this.from);
    this.from = null;
  }

  async play() {
    if (this.audio.error) this.audio.load();  // it stays broken until it is asked for again
    this.audio.currentTime = 0;
    this.fromStart = true;
    await this.audio.play();
  }

  claim() {
    return { clip: this.token, plays: this.plays, listened_ms: Math.round(1000 * this.listened) };
  }
}

export class Clips {
  // `onChange()` after each start and end; `onTrouble()` where a clip cannot be played.
  constructor(place, tokens, { names, inTurn, onChange, onTrouble }) {
    this.inTurn = inTurn;
    this.onChange = onChange;
    this.onTrouble = onTrouble;
    this.clips = tokens.map((token) => new Clip(token, () => this.changed()));
    this.names = names;
    this.turn = 0;  // counts presses: a later one ends the playing in turn of an earlier one
    this.running = false;
    this.buttons = (inTurn ? [""] : names).map((name, i) => this.button(name, i));
    place.replaceChildren(...this.buttons, ...this.clips.map((clip) => clip.audio));
  }

  button(name, i) {
    const button = Object.assign(document.createElement("button"),
      { type: "button", className: "play" });
    const sign = Object.assign(document.createElement("span"), { className: "play-sign" });
    sign.setAttribute("aria-hidden", "true");
    const word = Object.assign(document.createElement("span"), { className: "play-word" });
    button.append(sign, word);
    button.dataset.name = name;
    button.addEventListener("click", () => this.toggle(i));
    return button;
  }

  get sounding() { return this.clips.findIndex((clip) => !clip.audio.paused); }
  get complete() { return this.clips.every((clip) => clip.complete); }
  get heardSome() { return this.clips.some((clip) => clip.plays > 0); }

  // The clip that the space bar plays: the first not heard to its end, or the one heard last.
  next() {
    const open = this.clips.findIndex((clip) => !clip.complete);
    return this.inTurn ? 0 : Math.max(open, 0);
  }

  stop() {
    this.turn += 1;
    this.running = false;
    for (const clip of this.clips) clip.audio.pause();
    this.changed();
  }

  async toggle(i = this.next()) {
    const own = this.inTurn ? this.running : this.sounding === i;
    this.stop();
    if (own) return;
    const turn = this.turn;
    try {
      if (!this.inTurn) { await this.clips[i].play(); return; }
      this.running = true;
      for (const clip of this.clips) {
        await clip.play();
        await over(clip.audio);
        if (turn !== this.turn) return;
        if (clip !== this.clips.at(-1)) await new Promise((r) => { setTimeout(r, GAP_MS); });
        if (turn !== this.turn) return;
      }
      this.running = false;
    } catch (error) {
      if (turn === this.turn) this.running = false;
      if (error.name !== "AbortError") await this.onTrouble();
    }
    this.changed();
  }

  changed() {
    this.buttons.forEach((button, i) => {
      const on = this.inTurn ? this.running : this.sounding === i;
      const again = this.inTurn ? this.complete : this.clips[i].complete;
      button.classList.toggle("playing", on);
      const verb = say(on ? "stop" : again ? "play_again" : "play");
      const which = this.inTurn ? this.sounding : i;
      const name = this.clips.length > 1 && which >= 0 ? this.names[which] : "";
      // Beside each other the names are enough to see, and the sign says what a press does.
      const beside = this.buttons.length > 1;
      button.querySelector(".play-word").textContent = beside
        ? `${name}${again ? " ✓" : ""}` : name ? `${verb} – ${name}` : verb;
      if (beside) button.setAttribute("aria-label", `${verb} – ${name}${again ? " ✓" : ""}`);
    });
    this.onChange();
  }

  // Has the clips sent anew, since the server counts from there (a browser plays what it has).
  renew(key) {
    for (const clip of this.clips) clip.audio.src = `clip/${clip.token}?again=${key}`;
  }

  claims() { return this.clips.map((clip) => clip.claim()); }
}

// The end of a sound, or whatever stopped it.
function over(audio) {
  return new Promise((resolve) => {
    for (const event of ["ended", "pause", "error"]) {
      audio.addEventListener(event, () => resolve(), { once: true });
    }
  });
}
