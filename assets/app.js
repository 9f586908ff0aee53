// Sound on the Compare page: play from a token (table button or point in the depth plot), one
// sound at a time, and the blind round's play buttons. No request leaves this file.
(() => {
  const playFrom = (policy, seconds) => {
    const audio = document.querySelector(`audio[data-policy="${CSS.escape(policy)}"]`);
    if (!audio) return;
    audio.currentTime = seconds;
    audio.play();
  };

  document.addEventListener("click", (event) => {
    const from = event.target.closest("[data-play]");
    if (from) playFrom(from.dataset.play, Number(from.dataset.time));
    const blind = event.target.closest("[data-blind]");
    if (blind) {
      const audio = document.getElementById(`blind-${blind.dataset.blind}`);
      audio.currentTime = 0;
      audio.play();
    }
  });

  document.addEventListener("play", (event) => {
    for (const audio of document.querySelectorAll("audio")) {
      if (audio !== event.target) audio.pause();
    }
  }, true);

  // gr.Plot has no event for a click on a point; Plotly's own has.
  const listen = () => {
    for (const plot of document.querySelectorAll("#depth-plot .js-plotly-plot")) {
      if (plot.dataset.listening || !plot.on) continue;
      plot.dataset.listening = "yes";
      plot.on("plotly_click", ({ points }) => {
        const [policy, , seconds] = points[0].customdata ?? [];
        if (policy && seconds !== null) playFrom(policy, seconds);
      });
    }
  };
  new MutationObserver(listen).observe(document.documentElement, { childList: true, subtree: true });
})();
