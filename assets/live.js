// Sound of a run while it is made: plays its replies one after the other, each as its pieces come.
// When a reply's complete clip is in its card, the card's own player goes on from the same place.
// Pieces are int16 samples (spark/ui/live.py); nothing between there and here changes them.
(() => {
  const LEAD_S = 0.05; // the first piece waits this long, so that the second is not late
  const wanted = () => document.querySelector("#hear-live input")?.checked ?? false;
  const clipOf = (policy) => document.querySelector(`audio[data-policy="${CSS.escape(policy)}"]`);
  let run = null, last = -1, lines = [], context = null, hushed = false;
  // A line is one reply; the first one sounds. `begun`, `end` and `waited` are the context's times of
  // its first sample and its last, and how long it was silent between because a piece came late.

  const silence = () => {
    for (const { sources } of lines) for (const source of sources) source.stop();
    lines = [];
  };

  // The visitor wants to hear something else, or nothing: no more of this run.
  const hush = () => {
    silence();
    hushed = true;
  };

  const samplesOf = (base64) => {
    const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
    return Float32Array.from(new Int16Array(bytes.buffer), (value) => value / 32768);
  };

  const schedule = (line) => {
    if (context?.sampleRate !== line.rate) {
      context?.close();
      context = new AudioContext({ sampleRate: line.rate }); // else every seam is resampled
    }
    context.resume();
    for (const samples of line.pieces.splice(0)) {
      const buffer = context.createBuffer(1, samples.length, line.rate);
      buffer.copyToChannel(samples, 0);
      const source = new AudioBufferSourceNode(context, { buffer });
      source.connect(context.destination);
      const at = Math.max(line.end, context.currentTime + (line.sources.length ? 0 : LEAD_S));
      line.begun ??= at;
      line.waited += line.sources.length ? at - line.end : 0;
      line.end = at + buffer.duration;
      source.start(at);
      line.sources.push(source);
    }
  };

  // The complete clip takes over where the pieces are.
  const handOver = (line) => {
    const heard = line.begun === null ? 0 : context.currentTime - line.begun - line.waited;
    for (const source of line.sources) source.stop();
    line.clip = clipOf(line.policy);
    if (heard >= line.clip.duration) return next();
    line.clip.currentTime = Math.max(0, heard);
    line.clip.addEventListener("ended", next, { once: true });
    line.clip.play().catch(hush); // the browser wants a press of the visitor's own
  };

  const next = () => {
    lines.shift();
    sound();
  };

  const sound = () => {
    const line = lines[0];
    if (!line || line.clip) return;
    if (clipOf(line.policy)?.readyState > 0) handOver(line);
    else if (line.pieces.length) schedule(line);
  };

  const take = ({ n, policy, rate, pcm }) => {
    let line = lines.find((other) => other.policy === policy);
    if (!line) {
      line = { policy, rate, pieces: [], sources: [], begun: null, end: 0, waited: 0, clip: null,
               whole: true };
      lines.push(line);
    }
    line.whole &&= n === last + 1; // after a gap the rest is the complete clip's
    last = n;
    if (line.whole) line.pieces.push(samplesOf(pcm));
  };

  const look = () => {
    const told = document.querySelector("#live [data-pieces]");
    if (told && told.dataset.run !== run) {
      silence();
      [run, last, hushed] = [told.dataset.run, -1, !wanted()];
    }
    if (told && !hushed) {
      JSON.parse(told.dataset.pieces).filter(({ n }) => n > last).forEach(take);
    }
    sound();
  };

  new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("loadedmetadata", sound, true);
  document.addEventListener("play", ({ target }) => {
    if (target !== lines[0]?.clip) hush();
  }, true);
  document.addEventListener("pause", ({ target }) => {
    if (target === lines[0]?.clip && !target.ended) hush();
  }, true);
  document.addEventListener("click", ({ target }) => {
    if (target.closest("#stop")) hush();
  });
  document.addEventListener("change", ({ target }) => {
    if (target.closest("#hear-live") && !target.checked) hush();
  });
})();
