// The verdict of an answer, drawn. Everything a server or a user says is put in as text.

/** An element with a class, a text and children. */
export function make(kind, className = "", text = "", ...children) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const number = (value) => value.toFixed(2).replace("-", "−");

/** What the detector and the gates said of the prompt: the object `safetykit` of an answer. */
export function verdict(said) {
  const box = make("div", "verdict");
  if (said.risk === null) {
    const words = said.adapter === "off" ? "Without adapters there is no detector." : "This export has no detector.";
    box.append(make("p", "", words));
  } else {
    const words = decision(said);
    const first = make("p", "", "", make("strong", said.would_refuse ? "would" : "", words));
    const sign = said.risk > said.threshold ? "above" : "not above";
    first.append(` Risk ${number(said.risk)}, ${sign} the threshold ${number(said.threshold)}.`);
    box.append(first, bar(said), scale(said));
  }
  const gates = Object.entries(said.gates);
  if (gates.length) box.append(table(gates));
  return box;
}

function decision(said) {
  if (said.refused) return "Refused.";
  return said.would_refuse ? "Answered in shadow mode; it would have been refused." : "Answered.";
}

// The threshold is in the middle; the ends are as far from it as the risk, and at least this.
const LEAST = 4;

const span = (said) => Math.max(LEAST, 1.1 * Math.abs(said.risk - said.threshold));

function bar(said) {
  const share = (said.risk - said.threshold + span(said)) / (2 * span(said));
  const risk = make("div", said.risk > said.threshold ? "risk above" : "risk");
  risk.style.width = `${100 * Math.min(1, Math.max(0.01, share))}%`;
  const made = make("div", "bar", "", risk, make("div", "threshold"));
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `Risk ${number(said.risk)} against threshold ${number(said.threshold)}, in log-odds of harm`);
  return made;
}

function scale(said) {
  const ends = [said.threshold - span(said), said.threshold, said.threshold + span(said)];
  const made = make("div", "scale", "", ...ends.map((end) => make("span", "", number(end))));
  made.setAttribute("aria-hidden", "true");
  return made;
}

function table(gates) {
  const rows = gates.map(([name, value]) => {
    const head = make("th", "", `gate ${name}`);
    head.scope = "row";
    return make("tr", "", "", head, make("td", "", number(value)), make("td", "", value > 0 ? "open" : "closed"));
  });
  return make("table", "", "", make("tbody", "", "", ...rows));
}
