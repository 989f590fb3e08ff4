// The event stream. Uses fetch because EventSource cannot send a token. Resumes after a failure.

import { checked, request } from './api.js';

/** Longer than the keep-alive interval of the stream, 15 seconds. */
const SILENCE_MS = 20_000;
const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 10_000;

/** Parses server-sent events. Returns the incomplete rest. */
export function parse(text, each) {
  const blocks = text.split(/\r?\n\r?\n/);
  const rest = blocks.pop();
  for (const block of blocks) {
    const event = { id: null, kind: 'message', data: '' };
    for (const line of block.split(/\r?\n/)) {
      const [, name, value] = /^([a-z]+):? ?(.*)$/.exec(line) ?? [];
      if (name === 'id') event.id = value;
      else if (name === 'event') event.kind = value;
      else if (name === 'data') event.data += value;
    }
    if (event.data) each(event);
  }
  return rest;
}

export class Stream {
  #types = 'replica,figures';
  #last = '0';
  #abort = null;
  #wake = null;
  #watch = null;
  #onEvent;
  #onState;

  /** Calls `onEvent(kind, data)`, and `onState(state, why)` with `connecting`, `live` or `lost`. */
  constructor(onEvent, onState) {
    this.#onEvent = onEvent;
    this.#onState = onState;
  }

  /** Runs forever. The first connection replays all events that the daemon still keeps. */
  async run() {
    for (let failures = 0; ;) {
      const abort = new AbortController();
      this.#abort = abort;
      let why;
      try {
        await this.#read(abort, () => {
          failures = 0;
        });
        why = 'the stream has ended';
      } catch (error) {
        why = error.status ? error.message : 'the replicator does not answer';
      } finally {
        clearTimeout(this.#watch);
      }
      // A requested reconnect is not a failure.
      if (abort.signal.reason === 'again') continue;
      this.#onState('lost', why);
      const wait = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** failures);
      failures += 1;
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, wait * (0.8 + 0.4 * Math.random()));
      });
    }
  }

  /** Changes the event types. No event is missed. */
  want(types) {
    if (types === this.#types) return;
    this.#types = types;
    this.again();
  }

  again() {
    this.#abort?.abort('again');
    this.#wake?.();
  }

  async #read(abort, alive) {
    this.#onState('connecting');
    const watch = () => {
      clearTimeout(this.#watch);
      this.#watch = setTimeout(() => abort.abort('silent'), SILENCE_MS);
    };
    const path = `v1/events?types=${this.#types}&after=${this.#last}`;
    const response = await checked(await request(path, { signal: abort.signal, headers: { Accept: 'text/event-stream' } }));
    this.#onState('live');
    watch();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watch();
      text = parse(text + value, (event) => {
        if (event.id) this.#last = event.id;
        alive();
        this.#onEvent(event.kind, JSON.parse(event.data));
      });
    }
  }
}
