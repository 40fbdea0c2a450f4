// The operator's page: everything it shows comes from this service, everything it does is one of its calls.
"use strict";

const at = (id) => document.getElementById(id);
const STATES = {
  idle: ["Not unlocked", "idle"], authenticating: ["Logging in", "busy"], downloading_key: ["Fetching the key", "busy"],
  decrypting: ["Proving the archive", "busy"], loading_images: ["Loading images", "busy"], ready: ["Ready", "good"],
  error: ["Failed", "bad"],
};
const ORDER = ["authenticating", "downloading_key", "decrypting", "loading_images", "ready"];
const STARTED = ["The unlock run has started."];
const LONG_POLL_S = 25;
const RETRY_MS = 2000;
const TOKEN = "azaion-loader-token";
let lastStage = null;
let announced = "";
let pollEnds = null;

class Refusal extends Error {
  constructor(status, body) {
    const detail = body && body.detail;
    super(typeof detail === "string" ? detail : Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : `Status ${status}`);
    this.code = (body && body.code) || "";
  }
}

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store" });
  if (answer.ok) return answer;
  const refusal = new Refusal(answer.status, await answer.json().catch(() => null));
  if (refusal.code === "unauthorized") askForToken();
  throw refusal;
}

const get = async (path, options) => (await call(path, options)).json();
const post = async (path, body) => (await call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) })).json();

function askForToken() {
  const held = sessionStorage.getItem(TOKEN);
  if (at("token-card").hidden) {
    at("token-card").hidden = false;
    at("token").focus();
  }
  if (held) at("token-message").textContent = "The service refused this token.";
}

function say(id, text, tone = "idle") {
  at(id).textContent = text;
  at(id).dataset.tone = tone;
}

const unit = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = count;
  let step = 0;
  while (size >= 1024 && step < units.length - 1) { size /= 1024; step += 1; }
  return `${step && size < 100 ? size.toFixed(1) : Math.round(size)} ${units[step]}`;
};
const duration = (s) => (s === null ? "–" : s < 90 ? `${Math.ceil(s)} s` : `${Math.ceil(s / 60)} min`);

function show(figures, error) {
  const [words, tone] = STATES[figures.state] || [figures.state, "idle"];
  say("state", words, tone);
  if (ORDER.includes(figures.state)) lastStage = figures.state;
  const reached = figures.state === "idle" ? -1 : ORDER.indexOf(lastStage);
  for (const item of at("stages").children) {
    const place = ORDER.indexOf(item.dataset.stage);
    const current = place === reached && figures.state !== "ready";
    item.dataset.now = place < reached || figures.state === "ready" ? "done" : current && figures.state === "error" ? "failed" : "";
    item.toggleAttribute("aria-current", current && figures.state !== "error");
    if (item.hasAttribute("aria-current")) item.setAttribute("aria-current", "step");
  }
  at("progress").value = figures.percent;
  at("percent").textContent = `${figures.percent} %`;
  at("stage").textContent = figures.state === "idle" ? "Waiting for an unlock" : figures.state === "ready" ? "All images stand proved" : figures.state === "error" ? "Stopped; see below" : figures.stage;
  if (STARTED.includes(at("account-message").textContent) && !ORDER.slice(0, -1).includes(figures.state) && figures.state !== "idle") say("account-message", "");
  const rate = figures.rate_bytes_per_s ? ` at ${unit(figures.rate_bytes_per_s)}/s` : "";
  at("bytes").textContent = figures.bytes_total ? `${unit(figures.bytes_done)} of ${unit(figures.bytes_total)}${rate}` : "–";
  at("images").textContent = figures.images_total ? `${figures.images_done} of ${figures.images_total}` : "–";
  at("left").textContent = duration(figures.seconds_left);
  at("dots").replaceChildren(...Array.from({ length: figures.images_total }, (_, index) => {
    const dot = document.createElement("li");
    dot.classList.toggle("done", index < figures.images_done);
    return dot;
  }));
  at("run-note").hidden = !figures.note;
  at("run-note").textContent = figures.note || "";
  at("run-error").hidden = !error;
  if (at("run-error").textContent !== (error || "")) at("run-error").textContent = error || "";
  // Screen readers hear of states and tens of per cent, not of each chunk.
  const news = `${words}${tone === "busy" ? `, ${Math.floor(figures.percent / 10) * 10} per cent` : ""}`;
  if (news !== announced) at("live").textContent = announced = news;
}

async function watch() {
  let since = "";
  for (;;) {
    try {
      pollEnds = new AbortController();
      const figures = await get(`/unlock/progress?wait=${LONG_POLL_S}&since=${since}`, { signal: pollEnds.signal });
      const error = figures.state === "error" ? (await get("/unlock/status")).error : null;
      at("offline").hidden = true;
      show(figures, error);
      if (since !== figures.token) await showSession();
      since = figures.token;
    } catch (problem) {
      if (problem.name === "AbortError") { since = ""; continue; }
      at("offline").hidden = problem instanceof Refusal;
      since = "";
      await new Promise((resume) => setTimeout(resume, RETRY_MS));
    }
  }
}

async function showSession() {
  const status = await get("/status");
  say("session", status.authenticated ? "Logged in" : "Not logged in", status.authenticated ? "good" : "idle");
}

async function showVersion() {
  const about = await get("/version").catch(() => null);
  if (about) at("version").textContent = `Version ${about.version} · ${about.machine}${about.key_profile === "development" ? " · development keys" : ""}`;
}

// One action of a kind at a time; a second click while it runs does nothing.
function guard(buttons, action) {
  return async (event) => {
    event.preventDefault();
    if (buttons.some((button) => button.getAttribute("aria-disabled") === "true")) return;
    buttons.forEach((button) => button.setAttribute("aria-disabled", "true"));
    try { await action(event); } finally { buttons.forEach((button) => button.removeAttribute("aria-disabled")); }
  };
}

async function enter(path, doing, done) {
  if (!at("account-form").reportValidity()) return;
  say("account-message", doing);
  try {
    await post(path, { email: at("email").value, password: at("password").value });
    at("password").value = "";
    say("account-message", done, "good");
    if (pollEnds) pollEnds.abort();
    await showSession();
  } catch (problem) {
    say("account-message", problem instanceof Refusal ? problem.message : "The service does not answer.", "bad");
    at("password").focus();
    at("password").select();
  }
}

function transfer(share) {
  at("transfer").hidden = share === null;
  if (share === null) return;
  at("transfer-progress").value = share * 100;
  at("transfer-percent").textContent = `${Math.floor(share * 100)} %`;
}

function modelAt() {
  const folder = at("folder").value.trim();
  const name = at("name").value.trim();
  if (!name) { say("models-message", "Give the model's name.", "bad"); at("name").focus(); return null; }
  return { folder, name, path: encodeURIComponent(name) };
}

async function load() {
  const model = modelAt();
  if (!model) return;
  say("models-message", `Loading ${model.name}…`);
  try {
    const answer = await call(`/load/${model.path}`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ filename: model.name, folder: model.folder }) });
    const total = Number(answer.headers.get("Content-Length"));
    const reader = answer.body.getReader();
    const pieces = [];
    let got = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      got += value.length;
      transfer(total ? got / total : 1);
    }
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(pieces, { type: "application/octet-stream" }));
    link.download = model.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say("models-message", `Loaded ${model.name}, ${unit(got)}.`, "good");
  } catch (problem) {
    say("models-message", problem instanceof Refusal ? problem.message : "The transfer broke off; try again.", "bad");
  } finally {
    transfer(null);
  }
}

function send(path, form) {
  // fetch() does not tell how much of a body has been sent.
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = (event) => transfer(event.total ? event.loaded / event.total : 1);
    request.onload = () => (request.status === 200 ? resolve() : reject(new Refusal(request.status, request.response)));
    request.onerror = () => reject(new Error("broken off"));
    request.send(form);
  });
}

async function upload() {
  const file = at("file").files[0];
  if (!file) { say("models-message", "Choose a file to upload.", "bad"); at("file").focus(); return; }
  if (!at("name").value.trim()) at("name").value = file.name;
  const model = modelAt();
  if (!model) return;
  const form = new FormData();
  form.append("folder", model.folder);
  form.append("data", file, model.name);
  say("models-message", `Uploading ${model.name}, ${unit(file.size)}…`);
  try {
    await send(`/upload/${model.path}`, form);
    say("models-message", `Published ${model.name}.`, "good");
  } catch (problem) {
    if (problem.code === "unauthorized") askForToken();
    say("models-message", problem instanceof Refusal ? problem.message : "The transfer broke off; try again.", "bad");
  } finally {
    transfer(null);
  }
}

async function list() {
  const folder = at("folder").value.trim() || "models";
  try {
    const found = await get(`/resources/${encodeURIComponent(folder)}`);
    at("listing").replaceChildren(...found.resources.map((one) => {
      const item = document.createElement("li");
      const where = [one.published ? "published" : null, one.cached_bytes === null ? null : `${unit(one.cached_bytes)} cached here`];
      item.append(one.name, Object.assign(document.createElement("span"), { textContent: where.filter(Boolean).join(", ") }));
      return item;
    }));
    at("names").replaceChildren(...found.resources.map((one) => new Option("", one.name)));
    say("models-message", found.note || `${found.resources.length} in ${folder}.`);
  } catch (problem) {
    say("models-message", problem instanceof Refusal ? problem.message : "The service does not answer.", "bad");
  }
}

const TONES = { ok: ["Fine", "good"], warning: ["Look", "warn"], failed: ["Fault", "bad"], skipped: ["Not seen", "idle"] };
const RANK = { failed: 0, warning: 1, ok: 2, skipped: 3 };

function element(tag, text, className) {
  return Object.assign(document.createElement(tag), { textContent: text, className: className || "" });
}

async function diagnose() {
  say("diagnosis-message", "Looking…");
  try {
    const found = await get("/diagnostics");
    const checks = found.checks.slice().sort((one, other) => RANK[one.state] - RANK[other.state]);
    at("findings").replaceChildren(...checks.map((one) => {
      const item = document.createElement("li");
      const [words, tone] = TONES[one.state];
      const pill = element("span", words, "pill");
      pill.dataset.tone = tone;
      const text = document.createElement("div");
      const name = one.name.replaceAll("_", " ");
      text.append(element("h3", name[0].toUpperCase() + name.slice(1)), element("p", one.summary, "quiet"));
      if (one.advice) text.append(element("p", one.advice, "advice"));
      item.append(pill, text);
      return item;
    }));
    const bad = checks.filter((one) => one.state === "failed").length;
    say("diagnosis-message", bad ? `${bad} of ${checks.length} checks found a fault.` : "Nothing keeps the device from its work.", bad ? "bad" : "good");
  } catch (problem) {
    say("diagnosis-message", problem instanceof Refusal ? problem.message : "The service does not answer.", "bad");
  }
}

at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  at("token-message").textContent = "";
  get("/status").then(() => { at("token-card").hidden = true; showSession(); showVersion(); if (pollEnds) pollEnds.abort(); at("email").focus(); }).catch(() => {});
});
const account = [document.querySelector("[name=unlock]"), at("login")];
at("account-form").addEventListener("submit", guard(account, () => enter(at("refresh").checked ? "/unlock?refresh=true" : "/unlock", "Starting…", STARTED[0])));
at("login").addEventListener("click", guard(account, () => enter("/login", "Logging in…", "Logged in.")));
const models = [at("load"), at("upload"), at("list")];
at("load").addEventListener("click", guard(models, load));
at("upload").addEventListener("click", guard(models, upload));
at("list").addEventListener("click", guard(models, list));
at("models-form").addEventListener("submit", guard(models, load));
at("diagnose").addEventListener("click", guard([at("diagnose")], diagnose));
at("file").addEventListener("change", () => { if (at("file").files[0]) at("name").value = at("file").files[0].name; });
showVersion();
watch();
