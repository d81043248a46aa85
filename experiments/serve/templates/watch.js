"use strict";

/* All that is shown of anybody's text is set as text, never as HTML; the page loads nothing but itself. */

const LIMIT = 4; // standard deviations at which the colours end
const CENTRE = { x: 120, y: 120, radius: 96 };
const at = (id) => document.getElementById(id);
const talk = { key: "", model: "", threshold: 3, low: -4, high: 12, turns: [], hangUp: null };

function signed(number) {
  return number === null || number === undefined ? "–" : (number < 0 ? "−" : "+") + Math.abs(number).toFixed(2);
}

function made(kind, classes, text) {
  const element = document.createElement(kind);
  element.className = classes;
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawn(kind, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function headers() {
  const found = { "Content-Type": "application/json" };
  if (talk.key) found.Authorization = `Bearer ${talk.key}`;
  return found;
}

/* The gauge: from `low` on the left to `high` on the right. */

function share(value) {
  return Math.min(1, Math.max(0, (value - talk.low) / (talk.high - talk.low)));
}

function onArc(part, radius) {
  const angle = Math.PI * (1 - part);
  return [CENTRE.x + radius * Math.cos(angle), CENTRE.y - radius * Math.sin(angle)];
}

function arc(from, to) {
  const start = onArc(from, CENTRE.radius).join(" ");
  return `M ${start} A ${CENTRE.radius} ${CENTRE.radius} 0 0 1 ${onArc(to, CENTRE.radius).join(" ")}`;
}

function drawGauge() {
  const place = share(talk.threshold);
  at("below").setAttribute("d", arc(0, place));
  at("above").setAttribute("d", arc(place, 1));
  const [inner, outer, beyond] = [82, 110, 119].map((radius) => onArc(place, radius));
  for (const [name, value] of Object.entries({ x1: inner[0], y1: inner[1], x2: outer[0], y2: outer[1] }))
    at("mark").setAttribute(name, value);
  at("mark-text").setAttribute("x", beyond[0]);
  at("mark-text").setAttribute("y", beyond[1] + 2);
  at("mark-text").setAttribute("text-anchor", place > 0.55 ? "start" : place < 0.45 ? "end" : "middle");
  at("mark-text").textContent = signed(talk.threshold);
  const gauge = at("gauge");
  gauge.setAttribute("aria-valuemin", talk.low);
  gauge.setAttribute("aria-valuemax", talk.high);
}

function point(value) {
  at("needle").style.transform = `rotate(${-90 + 180 * share(value)}deg)`;
  at("value").textContent = signed(value);
  at("gauge").setAttribute("aria-valuenow", value);
}

function say(verdict, rang) {
  at("verdict").textContent = verdict;
  at("gauge").classList.toggle("rang", rang);
}

function drawTrace(values) {
  const [left, right, top, bottom] = [4, 236, 6, 92];
  const low = Math.min(talk.low / 2, ...values), high = Math.max(talk.threshold * 1.25, ...values) + 0.5;
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const x = (place) => left + (place / Math.max(values.length - 1, 12)) * (right - left);
  for (const [id, height] of [["threshold", y(talk.threshold)], ["axis", y(0)]]) {
    for (const [name, value] of Object.entries({ x1: left, x2: right, y1: height, y2: height }))
      at(id).setAttribute(name, value);
  }
  at("curve").setAttribute("d", values.map((v, place) => `${place ? "L" : "M"} ${x(place)} ${y(v)}`).join(" "));
  at("dots").replaceChildren(...values.map((value, place) => drawn("circle", {
    cx: x(place), cy: y(value), r: place ? 1.8 : 4, class: value > talk.threshold ? "dot high" : "dot",
  })));
  at("last").setAttribute("x", Math.max(130, x(values.length - 1)));
  at("last").textContent = values.length > 1 ? `token ${values.length - 1}` : "";
}

/* One reply. */

function coloured(span, score) {
  if (score === null) return;
  const tone = score > 0 ? "213, 94, 0" : "0, 114, 178";
  span.style.backgroundColor = `rgba(${tone}, ${(0.8 * Math.min(1, Math.abs(score) / LIMIT)).toFixed(2)})`;
}

class Reply {
  constructor() {
    this.element = made("div", "turn reply");
    this.values = [];
    this.text = "";
    at("turns").append(this.element);
  }

  add(content, told) {
    this.text += content;
    const first = told.token === 0;
    const span = made("span", first ? "start" : "said", first ? "" : content);
    coloured(span, told.standardised);
    const where = first ? "before the first word: " : "";
    span.title = `${where}score ${signed(told.standardised)}, statistic ${signed(told.statistic)}`;
    if (told.alarm !== null && told.alarm === told.token) span.classList.add("rang");
    this.element.append(span);
    if (told.statistic !== null) {
      this.values.push(told.statistic);
      point(told.statistic);
      drawTrace(this.values);
    }
    this.judge(told.alarm, false);
  }

  judge(alarm, stopped) {
    const words = alarm === null ? "quiet" : alarm === 0 ? "rang before the first word" : `rang at token ${alarm}`;
    say(words + (stopped ? ", stopped there" : ""), alarm !== null);
    return words;
  }

  end(content, told, reason) {
    if (content) this.element.append(made("span", "rest", content));
    this.text += content;
    const words = this.judge(told.alarm, told.stopped);
    const notes = [];
    if (told.alarm !== null) notes.push(`The alarm ${words}${told.stopped ? ", and the reply was stopped there" : ""}.`);
    if (reason === "length") notes.push("Cut at the longest reply allowed.");
    if (told.doubts.length) notes.push(`The alarm was calibrated for something else: ${told.doubts.join("; ")}.`);
    for (const note of notes) this.element.append(made("span", told.alarm === null ? "note" : "told", note));
  }
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function reply() {
  if (!talk.model) await meet(); // whoever is quicker than the first answer
  const answer = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: headers(),
    body: JSON.stringify({ model: talk.model, stream: true, messages: talk.turns }),
    signal: talk.hangUp.signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  const shown = new Reply();
  try {
    for await (const event of eventsOf(answer)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice.finish_reason === null) shown.add(choice.delta.content, choice.defection);
      else shown.end(choice.delta.content ?? "", choice.defection, choice.finish_reason);
      shown.element.scrollIntoView({ block: "nearest" });
    }
  } finally {
    if (shown.text) talk.turns.push({ role: "assistant", content: shown.text });
  }
}

function busy(is) {
  at("send").disabled = is;
  at("stop").hidden = !is;
}

async function ask(event) {
  event?.preventDefault();
  const text = at("said").value;
  if (!text.trim() || talk.hangUp) return;
  at("hint")?.remove();
  at("said").value = "";
  at("turns").append(made("div", "turn mine", text));
  talk.turns.push({ role: "user", content: text });
  talk.hangUp = new AbortController();
  say("reading", false);
  busy(true);
  try {
    await reply();
  } catch (error) {
    const stopped = error.name === "AbortError";
    at("turns").append(made("div", "turn failed", stopped ? "Stopped." : `No reply: ${error.message}`));
    if (talk.turns.at(-1).role === "user") talk.turns.pop();
  } finally {
    talk.hangUp = null;
    busy(false);
    at("said").focus();
  }
}

function anew() {
  talk.hangUp?.abort();
  talk.turns = [];
  at("turns").replaceChildren();
  at("value").textContent = "–";
  at("needle").style.transform = "rotate(-90deg)";
  say("nothing said yet", false);
  drawTrace([]);
}

/* Who is served, and by what alarm it is watched. */

async function meet() {
  const answer = await fetch("/v1/models", { headers: headers() });
  at("unlock").hidden = answer.status !== 401;
  if (!answer.ok) {
    at("about").textContent = (await answer.json()).error.message;
    return;
  }
  const [model] = (await answer.json()).data;
  const { alarm, probe, numbers } = model.defection;
  talk.model = model.id;
  talk.threshold = alarm.threshold;
  talk.high = Math.max(12, alarm.threshold * 2 + 4);
  at("model").textContent = model.id;
  const promise = alarm.rate === null ? "" : `, which rings in at most ${+(alarm.rate * 100).toPrecision(3)}% of clean conversations`;
  const layers = probe ? ` at ${probe.layers.length} layers` : "";
  at("about").textContent = `Watched by ${probe ? probe.estimator : "a probe"}${layers} (${numbers ?? ""}). ` +
    `Alarm: ${alarm.aggregator}${promise}${alarm.stops ? "; it stops the reply" : ""}.`;
  drawGauge();
  drawTrace([]);
}

at("ask").addEventListener("submit", ask);
at("said").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
});
at("stop").addEventListener("click", () => talk.hangUp?.abort());
at("anew").addEventListener("click", anew);
at("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  talk.key = at("key").value;
  at("key").value = "";
  meet();
});
meet().catch((error) => { at("about").textContent = `The server does not answer: ${error.message}`; });
