// Requests to the API: token, errors, paging.

import { askForToken } from './dialogs.js';

export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

// Kept in memory only, so that neither other scripts nor the disk hold it.
let token = null;
let asking = null;
let declined = false;
const watchers = new Set();

/** Calls `watcher` with `none`, `held` or `wanted` whenever the token changes. */
export function onToken(watcher) {
  watchers.add(watcher);
}

function notifyWatchers() {
  const state = token ? 'held' : declined ? 'wanted' : 'none';
  for (const watcher of watchers) watcher(state);
}

export function forgetToken() {
  token = null;
  declined = true;
  notifyWatchers();
}

export async function enterToken() {
  declined = false;
  await ask(false);
}

// One dialog serves all requests that got a 401.
function ask(wrong) {
  asking ??= askForToken(wrong).then((given) => {
    asking = null;
    token = given;
    declined = given === null;
    notifyWatchers();
  });
  return asking;
}

/** Sends a request and returns the response of any status. Asks for a token on a 401. */
export async function request(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    const response = await fetch(new URL(path, document.baseURI), {
      cache: 'no-store', credentials: 'same-origin', redirect: 'error', ...options, headers,
    });
    if (response.status !== 401 || declined) return response;
    // Another request may already have obtained a token.
    if (used === token) await ask(used !== null);
    if (declined) return response;
  }
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    if (typeof error === 'string') return error;
  } catch {
    // Not an answer of the daemon, perhaps of a proxy: report the status.
  }
  return `HTTP ${response.status} ${response.statusText}`.trim();
}

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

/** Maximum number of requests to fill one page of a list. */
const SCANS = 20;

/**
 * Up to `limit` items of a list, and the partitions that they lack. The daemon scans a bounded part per request, so a page may be empty
 * without being the last.
 */
export async function page(path, name, filter, limit, cursor) {
  const items = [];
  const lacking = new Set();
  for (let scan = 0; scan < SCANS && items.length < limit; scan += 1) {
    const values = { ...filter, limit: limit - items.length };
    if (cursor) values.cursor = cursor;
    const answer = await get(path + query(values));
    items.push(...answer[name]);
    for (const partition of answer.incomplete ?? []) lacking.add(partition);
    cursor = answer.next_cursor;
    if (!cursor) break;
  }
  return { items, next: cursor ?? null, incomplete: [...lacking].sort((a, b) => a - b) };
}
