// The questionnaire: what raters say about themselves, if they like.
//
// Nothing is preselected, and every question may be left open.

import { say } from "./strings.js";

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function choice(asked) {
  // An answer can be taken back: radios alone could not be emptied.
  const rows = [...asked.choices.map((text, i) => [asked.values[i], text]), ["", say("no_answer")]];
  const labels = rows.map(([value, text]) => element("label", {},
    element("input", { type: "radio", name: asked.id, value }),
    element("span", { textContent: text })));
  return element("fieldset", { className: "scale" },
    element("legend", { textContent: asked.question }),
    element("div", { className: "answers list" }, ...labels));
}

function text(asked, longest) {
  const input = element("input", { type: "text", name: asked.id, id: `about-${asked.id}`,
    maxLength: longest, autocomplete: "off" });
  return element("div", { className: "field" },
    element("label", { htmlFor: input.id, textContent: asked.question }), input);
}

export function fillQuestionnaire(place, study) {
  place.replaceChildren(...study.questionnaire.map(
    (asked) => (asked.choices ? choice(asked) : text(asked, study.max_text))));
}

export function restoreAnswers(form, answers) {
  for (const [name, value] of Object.entries(answers)) {
    if (form.elements[name]) form.elements[name].value = value;
  }
}

export function questionnaireAnswers(form) {
  const given = [...new FormData(form)].filter(([, value]) => value.trim());
  return Object.fromEntries(given);
}
