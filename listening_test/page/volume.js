// The sound to set the volume by: as loud as the clips of the test, and none of them.
//
// It goes on until it is stopped, so that both hands are free for the volume.

import { say } from "./strings.js";

const $ = (id) => document.getElementById(id);
let audio = null;
let heard = false;

export function volumeWords() {
  const on = audio !== null && !audio.paused;
  $("volume").classList.toggle("playing", on);
  $("volume-word").textContent = say(on ? "stop" : "volume_play");
}

export function stopVolume() { audio?.pause(); }

export const volumeHeard = () => heard;

$("volume").addEventListener("click", async () => {
  if (!audio) {
    audio = Object.assign(new Audio("volume"), { loop: true });
    for (const event of ["playing", "pause"]) audio.addEventListener(event, volumeWords);
    audio.addEventListener("playing", () => { heard = true; });
  }
  if (!audio.paused) { audio.pause(); return; }
  try { await audio.play(); } catch (error) {
    if (error.name === "AbortError") return;
    audio = null;  // asked for anew with the next press
    $("volume-word").textContent = say("not_played");
  }
});
