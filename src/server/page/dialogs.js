// The two questions that the page asks, and the messages that it leaves.

import { byId, el, setText } from './dom.js';

/** Opens a dialog; resolves with what `submit` gives, or with `null` when it is left. */
function ask(dialog, no, submit) {
  return new Promise((resolve) => {
    const form = dialog.querySelector('form');
    let answer = null;
    const onSubmit = (event) => {
      event.preventDefault();
      answer = submit(form);
      if (answer !== null) dialog.close();
    };
    const onNo = () => dialog.close();
    const onClose = () => {
      form.removeEventListener('submit', onSubmit);
      no.removeEventListener('click', onNo);
      dialog.removeEventListener('close', onClose);
      form.reset();
      resolve(answer);
    };
    form.addEventListener('submit', onSubmit);
    no.addEventListener('click', onNo);
    dialog.addEventListener('close', onClose);
    dialog.showModal();
  });
}

export function askForToken(wrong) {
  setText(byId('token-text'), wrong
    ? 'That token was not accepted. Try another.'
    : 'It is kept in this page’s memory alone and gone when the page is closed or reloaded.');
  return ask(byId('token'), byId('token-no'), (form) => form.elements.token.value.trim() || null);
}

/**
 * Asks whether to go on. `text` may be a promise: until it is there, the answer cannot be yes, and
 * when it resolves with `null` there is nothing to do.
 *
 * `typed` is a word that has to be typed first; `rated` asks for a rate, `named` for an address.
 *
 * Resolves with `{ rate, to }`, or with `null` for no.
 */
export function confirm({ title, text, yes, danger = false, typed = null, rated = false, named = false }) {
  const dialog = byId('confirm');
  const button = byId('confirm-yes');
  const form = dialog.querySelector('form');
  setText(byId('confirm-title'), title);
  setText(button, yes);
  button.classList.toggle('danger', danger);
  byId('confirm-word').hidden = !typed;
  setText(byId('confirm-word').querySelector('strong'), typed ?? '');
  byId('confirm-to').hidden = !named;
  byId('confirm-rate').hidden = !rated;
  let known = false;
  const allow = () => {
    const { word, to } = form.elements;
    button.disabled = !known || (typed && word.value.trim() !== typed) || (named && !to.value.trim());
  };
  form.oninput = allow;
  setText(byId('confirm-text'), 'Counting…');
  allow();
  let open = true;
  Promise.resolve(text).then(
    (said) => {
      if (!open) return;
      known = said.go;
      setText(byId('confirm-text'), said.text);
      allow();
    },
    (error) => open && setText(byId('confirm-text'), `Cannot count them: ${error.message}`),
  );
  const answered = ask(dialog, byId('confirm-no'), ({ elements }) => {
    const rate = rated && elements.rate.value ? Number(elements.rate.value) : null;
    return button.disabled ? null : { rate, to: elements.to.value.trim() };
  });
  byId('confirm-no').focus();
  return answered.finally(() => {
    open = false;
  });
}

const KEPT_NOTICES = 4;

/** Leaves a message: a good one goes by itself, a bad one stays until it is dismissed. */
export function notice(text, level = 'good') {
  const box = byId('notices');
  const close = el('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss this message', onclick: () => node.remove() }, '✕');
  const node = el('div', { class: 'notice', 'data-level': level, role: level === 'bad' ? 'alert' : 'status' }, el('span', {}, text), close);
  box.append(node);
  while (box.children.length > KEPT_NOTICES) box.firstElementChild.remove();
  if (level === 'good') setTimeout(() => node.remove(), 8000);
}

/** Runs what a button does; the button waits for it, and what goes wrong is told. */
export async function act(button, what, work) {
  button.disabled = true;
  try {
    const said = await work();
    if (said) notice(said);
  } catch (error) {
    notice(`${what}: ${error.message}`, 'bad');
  } finally {
    button.disabled = false;
  }
}

/** Says something to who cannot see it. */
export const announce = (text) => setText(byId('announce'), text);
