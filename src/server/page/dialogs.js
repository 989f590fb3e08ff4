// Dialogs and notices.

import { byId, el, setText } from './dom.js';

/** Opens a dialog. Resolves with the result of `submit`, or with `null` if it is cancelled. */
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
    : 'It is kept in memory only, until the page is closed or reloaded.');
  return ask(byId('token'), byId('token-no'), (form) => form.elements.token.value.trim() || null);
}

/**
 * Asks for confirmation. `text` is `{ go, text }` or a promise of it; the dialog can be confirmed
 * only once it resolves with `go`. `typed` is a word to type first, `rated` asks for a rate, `named`
 * for an address. Resolves with `{ rate, to }`, or with `null` if it is cancelled.
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
    (result) => {
      if (!open) return;
      known = result.go;
      setText(byId('confirm-text'), result.text);
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

/** Shows a message. A good one disappears after a while, a bad one stays until it is dismissed. */
export function notice(text, level = 'good') {
  const box = byId('notices');
  const close = el('button', { type: 'button', class: 'quiet', 'aria-label': 'Dismiss this message', onclick: () => node.remove() }, '✕');
  const node = el('div', { class: 'notice', 'data-level': level, role: level === 'bad' ? 'alert' : 'status' }, el('span', {}, text), close);
  box.append(node);
  while (box.children.length > KEPT_NOTICES) box.firstElementChild.remove();
  if (level === 'good') setTimeout(() => node.remove(), 8000);
}

/** Runs the action of a button, which is disabled meanwhile, and shows errors. */
export async function act(button, what, work) {
  button.disabled = true;
  try {
    const message = await work();
    if (message) notice(message);
  } catch (error) {
    notice(`${what}: ${error.message}`, 'bad');
  } finally {
    button.disabled = false;
  }
}

export const announce = (text) => setText(byId('announce'), text);
