// The questions of a trial: a scale of labelled answers each, or a slider for each clip.
//
// Nothing is preselected; a slider counts only once it was moved or pressed.

import { say } from "./strings.js";

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Questions {
  constructor(place, study, clips, onChange) {
    this.study = study;
    this.sliders = study.questions.every((question) => question.options.length === 0);
    this.changes = 0;
    this.fields = this.sliders ? [this.sliderField(clips)] : study.questions.map(
      (question, i) => this.scaleField(question, i));
    place.replaceChildren(...this.fields);
    place.oninput = () => { this.changes += 1; onChange(); };
  }

  scaleField(question, i) {
    const numeric = question.options.every(([value]) => value >= 1 && value <= 9);
    const labels = question.options.map(([value, label], place) => {
      const input = element("input", { type: "radio", name: `answer-${i}`, value });
      const digit = element("span", { className: "digit" });
      digit.textContent = numeric ? value : place + 1;
      if (!numeric) digit.setAttribute("aria-hidden", "true");
      return element("label", {}, input, digit, element("span", { textContent: label }));
    });
    const answers = element("div", { className: "answers" }, ...labels);
    answers.dataset.n = labels.length;
    return element("fieldset", { className: "scale" },
      element("legend", { textContent: question.text }), answers);
  }

  sliderField(clips) {
    const rows = clips.names.slice(1).map((name, i) => {
      const output = element("output", { textContent: say("not_rated") });
      const input = element("input", { type: "range", min: 0, max: 100, step: 1, value: 50,
        className: "unset", id: `slider-${i}` });
      input.setAttribute("aria-valuetext", say("not_rated"));
      const set = () => {
        input.classList.remove("unset");
        const band = this.study.bands[Math.min(Math.floor((100 - input.value) / 20), 4)];
        output.textContent = `${input.value} ${band}`;
        input.setAttribute("aria-valuetext", output.textContent);
      };
      input.addEventListener("input", set);
      // Where it stands already is an answer too: pressed, or confirmed with Enter.
      const here = () => {
        if (!input.disabled && input.classList.contains("unset")) {
          input.dispatchEvent(new Event("input", { bubbles: true }));
        }
      };
      input.addEventListener("pointerup", here);
      input.addEventListener("keydown", (event) => {
        if (event.key === "Enter") { event.preventDefault(); event.stopPropagation(); here(); }
      });
      return element("div", { className: "slider" },
        element("label", { htmlFor: input.id, textContent: name }), input, output);
    });
    return element("fieldset", { className: "scale" },
      element("legend", { textContent: this.study.questions[0].text }),
      element("p", { className: "bands", textContent: this.study.bands.join(" · ") }), ...rows);
  }

  enable(on) { for (const field of this.fields) field.disabled = !on; }
  get enabled() { return !this.fields[0].disabled; }

  // The answers so far, null where there is none.
  get answers() {
    if (this.sliders) {
      return [...this.fields[0].querySelectorAll("input")].map(
        (input) => (input.classList.contains("unset") ? null : Number(input.value)));
    }
    return this.fields.map((field, i) => {
      const chosen = field.querySelector("input:checked");
      return chosen ? this.valueOf(i, chosen.value) : null;
    });
  }

  get complete() { return this.answers.every((answer) => answer !== null); }

  valueOf(i, text) {
    return this.study.questions[i].options.find(([value]) => String(value) === text)[0];
  }

  // A digit key: the answer of that number in the first open question, else in the last one.
  press(digit) {
    if (this.sliders || !this.enabled) return;
    const open = this.answers.indexOf(null);
    const i = open < 0 ? this.fields.length - 1 : open;
    const inputs = [...this.fields[i].querySelectorAll("input")];
    const labelled = inputs.find((input) => input.nextSibling.textContent === String(digit));
    if (labelled && !labelled.checked) {
      labelled.checked = true;
      labelled.dispatchEvent(new Event("input", { bubbles: true }));
    }
  }

  // Puts answers back that were given before; null where there is none.
  restore(answers, changes) {
    this.changes = changes;
    answers.forEach((answer, i) => {
      if (answer === null) return;
      if (this.sliders) {
        const input = this.fields[0].querySelectorAll("input")[i];
        input.value = answer;
        input.dispatchEvent(new Event("input"));
      } else {
        this.fields[i].querySelector(`input[value="${answer}"]`).checked = true;
      }
    });
  }
}
