// What both pages need of the service and of the document.

export const $ = (id) => document.getElementById(id);

// An element: el("td", {className: "number"}, "12"); text is always text, never markup.
export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

export class Problem extends Error {
  constructor(document, status) {
    super(document.detail || document.title || `HTTP ${status}`);
    this.document = document;
    this.status = status;
  }
}

// A key for servers that want one: asked for when one says so, kept until the tab is closed.
const KEPT = "iafvae-key";

function withKey(init) {
  const key = sessionStorage.getItem(KEPT);
  return key ? { ...init, headers: { ...init.headers, authorization: `Bearer ${key}` } } : init;
}

export async function ask(path, init = {}) {
  const used = sessionStorage.getItem(KEPT);
  const response = await fetch(path, withKey(init));
  if (response.status !== 401) return response;
  if (sessionStorage.getItem(KEPT) === used) { // else another question has got a key meanwhile
    const given = prompt(used ? "This key is not known here. Another one?" : "This service needs a key:");
    if (!given) return response;
    sessionStorage.setItem(KEPT, given.trim());
  }
  return fetch(path, withKey(init));
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

// POST a JSON body; gives {response, data}, data being JSON or, for another `accept`, a Blob.
export async function post(path, body, { accept = "application/json", signal } = {}) {
  const headers = { "content-type": "application/json", accept };
  const response = await checked(
    await ask(path, { method: "POST", headers, body: JSON.stringify(body), signal }),
  );
  return { response, data: accept === "application/json" ? await response.json() : await response.blob() };
}

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;

export function timing(response) {
  const ms = (name) => (1000 * Number(response.headers.get(`x-iafvae-${name}-seconds`))).toFixed(1);
  return `computed in ${ms("compute")} ms on ${response.headers.get("x-iafvae-provider")}, waited ${ms("queue")} ms`;
}

export function save(blob, name) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
