// Operations on dead letters: progress, result, cancelling.

import { get, remove } from './api.js';
import { act } from './dialogs.js';
import { byId, el, keyed, setAttribute, setText } from './dom.js';
import * as format from './format.js';

const LOOK_MS = 500;
const PATIENCE_MS = 2_000;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export async function finished(operation) {
  for (let wait = 50; operation.state === 'running'; wait = Math.min(LOOK_MS, wait * 2)) {
    await pause(wait);
    operation = await get(`v1/operations/${operation.operation_id}`);
  }
  return operation;
}

/** What became of redriven dead letters; empty if nothing is known. */
export function fates(outcomes) {
  const words = { delivered: 'delivered', failed: 'failed again', superseded: 'superseded', discarded: 'discarded', handed_over: 'handed over to another instance', waiting: 'still waiting' };
  const parts = Object.entries(words).filter(([name]) => outcomes?.[name] > 0).map(([name, word]) => `${format.count(outcomes[name])} ${word}`);
  return parts.join(', ');
}

/** Waits a while for the outcomes of the dead letters that an ended operation redrove. */
export async function settled(operation) {
  for (let wait = 50; operation.outcomes?.waiting > 0 && wait < PATIENCE_MS; wait *= 2) {
    await pause(wait);
    operation = await get(`v1/operations/${operation.operation_id}`);
  }
  return operation;
}

/** It runs, or letters that it redrove have no outcome yet. */
const isOpen = ({ state, outcomes }) => state === 'running' || outcomes?.waiting > 0;

/** All running operations, also those started elsewhere. */
export class Operations {
  #running = new Map();
  #looking = false;
  #ended;

  /** Calls `ended(operation)` once for each operation that was seen running. */
  constructor(ended) {
    this.#ended = ended;
  }

  follow(operation) {
    if (!isOpen(operation)) {
      this.#ended(operation);
      return;
    }
    this.#running.set(operation.operation_id, operation);
    this.#look();
  }

  async watch() {
    let page;
    try {
      page = await get('v1/operations');
    } catch {
      // The list of dead letters shows the same error.
      return;
    }
    for (const operation of page.operations) {
      if (isOpen(operation) && !operation.dry_run) this.#running.set(operation.operation_id, operation);
    }
    this.#look();
  }

  async #look() {
    this.#draw();
    if (this.#looking) return;
    this.#looking = true;
    while (this.#running.size > 0) {
      await pause(LOOK_MS);
      await Promise.all([...this.#running.keys()].map((id) => this.#lookAt(id)));
      this.#draw();
    }
    this.#looking = false;
  }

  async #lookAt(id) {
    let operation;
    try {
      operation = await get(`v1/operations/${id}`);
    } catch (error) {
      // Operations do not survive a restart of the daemon.
      if (error.status === 404) this.#running.delete(id);
      return;
    }
    this.#running.set(id, operation);
    if (isOpen(operation)) return;
    this.#running.delete(id);
    this.#ended(operation);
  }

  #draw() {
    keyed(byId('operations'), [...this.#running.values()], (operation) => operation.operation_id, row, update);
  }
}

function row({ operation_id: id, kind }) {
  const name = kind === 'redrive' ? 'Redriving' : 'Discarding';
  const bar = el('progress', { max: 1, 'aria-label': name });
  const text = el('span', { role: 'status' });
  const cancel = el('button', { type: 'button', class: 'quiet' }, 'Cancel');
  cancel.addEventListener('click', () => act(cancel, 'Not cancelled', async () => {
    await remove(`v1/operations/${id}`);
  }));
  const node = el('div', { class: 'operation' }, el('strong', {}, name), bar, text, cancel);
  Object.assign(node, { bar, text, cancel });
  return node;
}

function update(node, { examined, total, done, rate, state, outcomes, error, incomplete }) {
  node.cancel.hidden = state !== 'running';
  setAttribute(node.bar, 'max', String(Math.max(1, total)));
  setAttribute(node.bar, 'value', String(Math.min(examined, total)));
  const limit = rate === null ? '' : `, at most ${format.count(rate)} per second`;
  const fate = fates(outcomes);
  setText(node.text, `${format.count(done)} done, ${format.count(examined)} of ${format.count(total)} examined${limit}${fate && `: ${fate}`}${error ? `. ${error}` : ''}${incomplete ? `. ${format.lack(incomplete)}` : ''}`);
}
