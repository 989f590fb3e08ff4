// Operations over many dead letters: their progress, their end, and how to cancel them.

import { get, remove } from './api.js';
import { act } from './dialogs.js';
import { byId, el, keyed, setAttribute, setText } from './dom.js';
import * as format from './format.js';

const LOOK_MS = 500;

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for the end of an operation that somebody waits for. */
export async function finished(operation) {
  for (let wait = 50; operation.state === 'running'; wait = Math.min(LOOK_MS, wait * 2)) {
    await pause(wait);
    operation = await get(`v1/operations/${operation.operation_id}`);
  }
  return operation;
}

/** The operations that are running, whoever began them. */
export class Operations {
  #running = new Map();
  #looking = false;
  #ended;

  /** `ended(operation)` is called once for each that was seen running. */
  constructor(ended) {
    this.#ended = ended;
  }

  follow(operation) {
    if (operation.state !== 'running') {
      this.#ended(operation);
      return;
    }
    this.#running.set(operation.operation_id, operation);
    this.#look();
  }

  /** Looks for those that were begun elsewhere. */
  async watch() {
    let page;
    try {
      page = await get('v1/operations');
    } catch {
      // The list beside it says what is wrong.
      return;
    }
    for (const operation of page.operations) {
      if (operation.state === 'running' && !operation.dry_run) this.#running.set(operation.operation_id, operation);
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
      // It does not survive a restart of the daemon: what it had not come to stays as it was.
      if (error.status === 404) this.#running.delete(id);
      return;
    }
    this.#running.set(id, operation);
    if (operation.state === 'running') return;
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
  cancel.addEventListener('click', () => act(cancel, 'It goes on', async () => {
    await remove(`v1/operations/${id}`);
  }));
  const node = el('div', { class: 'operation' }, el('strong', {}, name), bar, text, cancel);
  Object.assign(node, { bar, text });
  return node;
}

function update(node, { examined, total, done, rate }) {
  setAttribute(node.bar, 'max', String(Math.max(1, total)));
  setAttribute(node.bar, 'value', String(Math.min(examined, total)));
  const limit = rate === null ? '' : `, at most ${format.count(rate)} a second`;
  setText(node.text, `${format.count(done)} done, ${format.count(examined)} of ${format.count(total)} looked at${limit}`);
}
