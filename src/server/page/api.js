// Requests to /v1: the token, the errors, the pages.

import { askForToken } from './dialogs.js';

/** An answer that says no, in the daemon's own sentence. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

// In memory alone: what a script or a stolen disk could read, is not kept.
let token = null;
let asking = null;
let declined = false;
const watchers = new Set();

/** Calls `watcher` with `none`, `held` or `wanted` whenever the token comes or goes. */
export function onToken(watcher) {
  watchers.add(watcher);
}

function told() {
  const state = token ? 'held' : declined ? 'wanted' : 'none';
  for (const watcher of watchers) watcher(state);
}

export function forgetToken() {
  token = null;
  declined = true;
  told();
}

/** Asks again, after a no. */
export async function enterToken() {
  declined = false;
  await ask(false);
}

// Many requests may meet a 401 at once; one dialog is enough for all of them.
function ask(wrong) {
  asking ??= askForToken(wrong).then((given) => {
    asking = null;
    token = given;
    declined = given === null;
    told();
  });
  return asking;
}

/** Sends a request and gives its answer, whatever its status, once the token is settled. */
export async function request(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(new URL(path, document.baseURI), {
      cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...options, headers,
    });
    if (response.status !== 401 || declined) return response;
    // Another request may have been given a token in the meantime.
    if (used === token) await ask(used !== null);
    if (declined) return response;
  }
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    if (typeof error === 'string') return error;
  } catch {
    // What is no JSON was not written by the daemon: its status has to do.
  }
  return `the answer was ${response.status} ${response.statusText}`.trim();
}

/** Throws what an answer refuses. */
export async function checked(response) {
  if (!response.ok) throw new Refused(response.status, await sentence(response));
  return response;
}

async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { 'Content-Type': 'application/json' };
  }
  let response;
  try {
    response = await request(path, options);
  } catch {
    throw new Refused(0, 'the replicator does not answer');
  }
  return (await checked(response)).json();
}

export const get = (path) => call('GET', path);
export const post = (path, body) => call('POST', path, body);
export const remove = (path) => call('DELETE', path);

export function query(values) {
  const text = new URLSearchParams(values).toString();
  return text && `?${text}`;
}

/** How many pages one look at a list may cost: each scans a bounded part of what is there. */
const SCANS = 20;

/**
 * Up to `limit` items of a list. The daemon bounds what it scans for one answer, so a page may be
 * empty and still not the last.
 */
export async function page(path, name, filter, limit, cursor) {
  const items = [];
  for (let scan = 0; scan < SCANS && items.length < limit; scan += 1) {
    const values = { ...filter, limit: limit - items.length };
    if (cursor) values.cursor = cursor;
    const answer = await get(path + query(values));
    items.push(...answer[name]);
    cursor = answer.next_cursor;
    if (!cursor) break;
  }
  return { items, next: cursor ?? null };
}
