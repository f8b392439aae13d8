// What both pages need of the service: questions that wait for a busy server and for one that is
// gone, and that ask for a key where one is wanted.

import { $, el } from "./dom.js";

export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `HTTP ${status}`);
    this.document = document;
    this.status = status;
  }
}

const KEPT = "iafvae-key"; // until the tab is closed
const BUSY_TRIES = 5; // after the first
const LONGEST_WAIT = 30; // seconds between two tries to reach a server

export async function ask(path, init = {}) {
  for (let refusals = 0, isRetry = false; ; ) {
    const key = sessionStorage.getItem(KEPT);
    const headers = key ? { ...init.headers, authorization: `Bearer ${key}` } : init.headers;
    let response;
    try {
      response = await fetch(path, { ...init, headers });
      // All of it here: a server that goes in the middle of its answer has not answered.
      response = new Response(response.body && await response.blob(), response);
    } catch (error) {
      const isAlone = isRetry && await isAlive(); // a request that fails at a server that answers others
      if (init.signal?.aborted) throw error;
      if (isAlone) throw new Problem({ detail: "The server answers, but not this request: has a file changed since it was chosen?" });
      await pause(untilBack, init.signal);
      isRetry = true;
      continue;
    }
    isRetry = false;
    if (response.status === 401) {
      const isNewer = sessionStorage.getItem(KEPT) !== key; // another question has got one meanwhile
      if (isNewer || await newKey(key !== null)) continue;
    }
    if ([429, 502, 503].includes(response.status) && refusals < BUSY_TRIES) {
      refusals += 1;
      const seconds = Number(response.headers.get("retry-after")) || 1;
      await pause(() => countdown(seconds, response.status === 429 ? "The server is busy." : "The server is not ready."), init.signal);
      continue;
    }
    return response;
  }
}

let waiting = null; // one wait for all questions; each can be left by its signal

function pause(work, signal) {
  waiting ??= work().finally(() => {
    waiting = null;
    $("notice").hidden = true;
  });
  const left = new Promise((_, reject) => {
    signal?.addEventListener("abort", () => reject(signal.reason));
  });
  return Promise.race([waiting, left]);
}

async function untilBack() {
  for (let tries = 1; ; tries += 1) {
    await countdown(Math.min(LONGEST_WAIT, 2 ** tries), "The server does not answer. What is here stays.");
    if (await isAlive()) return;
  }
}

const isAlive = () => fetch("livez").then(() => true, () => false);

function countdown(seconds, message) {
  const notice = $("notice");
  // The numbers are for eyes: a screen reader would say each of them.
  const clock = el("span", { ariaHidden: "true" });
  const now = el("button", { type: "button", className: "quiet" }, "Try now");
  const isSaid = !notice.hidden && notice.firstChild?.textContent === message; // else it is said anew
  notice.replaceChildren(isSaid ? notice.firstChild : el("span", {}, message), clock, now);
  notice.hidden = false;
  return new Promise((resolve) => {
    const end = Date.now() + 1000 * seconds;
    const show = () => {
      const left = Math.ceil((end - Date.now()) / 1000);
      clock.textContent = ` Trying again in ${left} s. `;
      if (left <= 0) finish();
    };
    const timer = setInterval(show, 250);
    const finish = () => { clearInterval(timer); clock.textContent = " Trying again. "; resolve(); };
    now.onclick = finish;
    show();
  });
}

let dialog = null; // one, however many questions wait for a key

function newKey(isRefused) {
  dialog ??= keyDialog(isRefused).finally(() => { dialog = null; });
  return dialog;
}

// Whether a key was given.
function keyDialog(isRefused) {
  const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true });
  // A header holds nothing else: the browser would not send it.
  field.oninput = () => field.setCustomValidity(/^[\x21-\x7e]+$/.test(field.value.trim()) ? "" : "A key is of ASCII letters, digits and signs, without spaces.");
  const cancel = el("button", { type: "button", className: "quiet" }, "Cancel");
  const form = el("form", { method: "dialog" },
    el("h2", { id: "key-head" }, "This service needs a key"),
    el("p", { className: "hint" }, isRefused ? "The last one is not known here." : "It is kept until this tab is closed."),
    el("label", { htmlFor: "key" }, "Key"), field,
    el("div", { className: "row" }, el("button", { className: "primary" }, "Use it"), cancel));
  const node = el("dialog", {}, form);
  node.setAttribute("aria-labelledby", "key-head");
  document.body.append(node);
  node.showModal();
  return new Promise((resolve) => {
    form.onsubmit = () => { sessionStorage.setItem(KEPT, field.value.trim()); node.returnValue = "given"; };
    cancel.onclick = () => node.close();
    node.onclose = () => { node.remove(); resolve(node.returnValue === "given"); };
  });
}

async function checked(response) {
  if (response.ok) return response;
  let document = {};
  try { document = await response.json(); } catch { /* not a problem document */ }
  throw new Problem(document, response.status);
}

export async function getJson(path) {
  return (await checked(await ask(path))).json();
}

// POST fields as JSON, or with `files` (Blobs) as a form; gives {response, data}, where data is JSON
// or, for another `accept`, a Blob.
export async function post(path, fields, { accept = "application/json", files, signal } = {}) {
  const headers = { accept };
  let body;
  if (files) {
    body = new FormData(); // the browser writes the content type, with its boundary
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
    for (const file of files) body.append("files", file);
  } else {
    headers["content-type"] = "application/json";
    body = JSON.stringify(fields);
  }
  const response = await checked(await ask(path, { method: "POST", headers, body, signal }));
  return { response, data: accept === "application/json" ? await response.json() : await response.blob() };
}

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;

export function pngBlob(base64) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

export function timing(response) {
  const ms = (name) => (1000 * Number(response.headers.get(`x-iafvae-${name}-seconds`))).toFixed(1);
  return `computed in ${ms("compute")} ms on ${response.headers.get("x-iafvae-provider")}, waited ${ms("queue")} ms`;
}
