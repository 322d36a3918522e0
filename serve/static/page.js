// The page: a conversation with pictures, and beside each answer what the detector said of it.

import { Failure, ask, served } from "./client.js";
import { make, verdict } from "./verdict.js";

const at = (id) => document.getElementById(id);
const SHADOW = "shadow";
const FITTED = "fitted";
const REASONS = { length: "Cut off at the longest answer.", content_filter: "", stop: "" };

let model = null; // as the server describes it; null until it has
let pictures = []; // data URLs of the message being written
let histories = {}; // by column: the conversation as that column's answers made it
let running = null; // what stops the answer in the making

// --- the server

async function connect() {
  try {
    model = await served(at("key").value.trim());
  } catch (error) {
    if (error.status === 401) at("settings").open = true;
    notice(at("key").value || error.status !== 401 ? error.message : "The server asks for an API key: it is a setting.");
    return false;
  }
  notice("");
  at("model").textContent = model.id;
  const { adapters, shadow, max_strength: strongest, max_new_tokens: most } = model.safetykit;
  at("tokens").max = most;
  at("tokens").value = Math.min(most, Number(at("tokens").value) || most);
  const others = adapters.slice(1).map((name) => [`adapter:${name}`, titled(name)]);
  if (shadow) others.push([SHADOW, "shadow mode: nothing refused"]);
  if (strongest !== null) others.push([FITTED, "strength 1: as fitted"]);
  at("scaled").hidden = strongest === null;
  at("strength").max = at("most").textContent = strongest;
  const chosen = at("compare").value;
  at("compare").replaceChildren(...[["", "nothing"], ...others].map(([value, text]) => new Option(text, value)));
  at("compare").value = others.some(([value]) => value === chosen) ? chosen : "";
  at("compare").disabled = !others.length;
  return true;
}

function notice(words) {
  at("notice").textContent = words;
  at("notice").hidden = !words;
}

// --- pictures

async function add(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) {
      notice(`${file.name || "What was dropped"} is no picture.`);
      continue;
    }
    pictures.push(await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    }));
  }
  drawPictures();
}

function drawPictures() {
  at("pictures").replaceChildren(...pictures.map((url, place) => {
    const picture = make("img");
    picture.src = url;
    picture.alt = `picture ${place + 1}`;
    const remove = make("button", "", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove picture ${place + 1}`);
    remove.onclick = () => {
      pictures.splice(place, 1);
      drawPictures();
      at("prompt").focus();
    };
    return make("li", "", "", picture, remove);
  }));
}

// --- answers

function titled(adapter) {
  return adapter === "off" ? "without adapters" : `adapter ${adapter}`;
}

function columns() {
  const given = model.safetykit.max_strength === null ? "" : at("strength").value;
  const strength = given === "" ? 1 : Number(given);
  const scaled = strength === 1 ? {} : { strength };
  const as = (title) => (strength === 1 ? title : `${title}, strength ${strength}`);
  const own = "the export's own adapters";
  const first = { name: "on", title: as(own), choice: scaled };
  const chosen = at("compare").value;
  if (chosen === SHADOW) return [{ name: SHADOW, title: as("shadow mode"), choice: { shadow: true, ...scaled } }, first];
  if (chosen === FITTED) return [first, { name: FITTED, title: `${own}, as fitted`, choice: {} }];
  if (chosen) {
    const adapter = chosen.slice("adapter:".length);
    const plain = adapter === "off"; // which has no strength
    const title = plain ? titled(adapter) : as(titled(adapter));
    return [first, { name: chosen, title, choice: { adapter, ...(plain ? {} : scaled) } }];
  }
  return [first];
}

function content(text) {
  if (!pictures.length) return text;
  return [...pictures.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
}

function drawSaid(text) {
  const said = make("div", "said");
  for (const url of pictures) {
    const picture = make("img");
    picture.src = url;
    picture.alt = "the picture that was sent";
    said.append(picture);
  }
  said.append(make("p", "", text));
  return said;
}

async function answer(column, message, signal, article) {
  const words = make("p", "words");
  const about = make("div");
  article.append(words, about);
  article.classList.add("busy");
  const before = histories[column.name] ?? [];
  const body = {
    model: model.id,
    messages: [...before, message],
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("tokens").value),
    safetykit: column.choice,
  };
  let reason = null;
  try {
    await ask(body, at("key").value.trim(), signal, (piece) => {
      words.textContent += piece.choices[0].delta.content ?? "";
      reason = piece.choices[0].finish_reason ?? reason;
      if (piece.safetykit) {
        article.classList.toggle("refused", piece.safetykit.refused);
        about.replaceChildren(verdict(piece.safetykit));
      }
      article.scrollIntoView({ block: "end" });
    });
    const reply = { role: "assistant", content: words.textContent };
    histories[column.name] = reply.content ? [...before, message, reply] : before;
    if (REASONS[reason]) about.before(make("p", "ended", REASONS[reason]));
    if (!reply.content) about.before(make("p", "ended", "The answer is empty."));
    return true;
  } catch (error) {
    if (!(error instanceof Failure) && error.name !== "AbortError") throw error;
    about.before(make("p", "wrong", error.name === "AbortError" ? "Stopped." : error.message));
    if (error.status === 401) at("settings").open = true;
    return error.name === "AbortError";
  } finally {
    article.classList.remove("busy");
  }
}

async function send() {
  const text = at("prompt").value.trim();
  if (running || (!text && !pictures.length)) return;
  busy(new AbortController());
  if (!model && !(await connect())) {
    busy(null);
    return;
  }
  notice("");
  at("empty").hidden = true;
  const message = { role: "user", content: content(text) };
  const chosen = columns();
  const articles = chosen.map((column) => make("article", "", "", make("h2", "", column.title)));
  if (chosen.length === 1 && !("strength" in chosen[0].choice)) articles[0].firstChild.className = "hidden";
  at("talk").append(make("li", "", "", drawSaid(text), make("div", "answers", "", ...articles)));
  const kept = [text, pictures];
  at("prompt").value = "";
  pictures = [];
  drawPictures();
  const { signal } = running;
  try {
    const good = await Promise.all(chosen.map((column, place) => answer(column, message, signal, articles[place])));
    if (!good.some(Boolean) && !at("prompt").value && !pictures.length) {
      [at("prompt").value, pictures] = kept; // to be sent again
      drawPictures();
    }
  } finally {
    busy(null);
    at("prompt").focus();
  }
}

function busy(controller) {
  running = controller;
  at("stop").hidden = !controller;
  at("send").disabled = at("anew").disabled = Boolean(controller);
}

// --- what the user does

at("form").onsubmit = (event) => {
  event.preventDefault();
  send();
};
at("prompt").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
at("stop").onclick = () => running?.abort();
at("anew").onclick = () => {
  histories = {};
  at("talk").replaceChildren();
  at("empty").hidden = false;
  notice("");
  at("prompt").focus();
};
at("files").onchange = async () => {
  await add(at("files").files);
  at("files").value = "";
  at("prompt").focus();
};
at("key").onchange = connect;
document.onpaste = (event) => {
  const found = [...event.clipboardData.files];
  if (!found.length) return;
  event.preventDefault();
  add(found);
};
document.ondragover = (event) => {
  event.preventDefault();
  at("form").classList.add("over");
};
document.ondragleave = (event) => {
  if (!event.relatedTarget) at("form").classList.remove("over");
};
document.ondrop = (event) => {
  event.preventDefault();
  at("form").classList.remove("over");
  add(event.dataTransfer.files);
};
connect();
