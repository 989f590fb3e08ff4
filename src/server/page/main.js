// The page of the replicator: what it follows, and which view is shown.
//
// No build step and no library: these modules are what the browser runs. To read: `events` and
// `history` bring the figures, `overview`, `replicas` and `plot` show them, `letters`,
// `operations` and `tasks` are the other views, `api` is every request, `dom` and `format` the
// small things.

import { enterToken, forgetToken, get, onToken } from './api.js';
import { act, announce } from './dialogs.js';
import { byId, setAttribute, setText } from './dom.js';
import { Stream } from './events.js';
import * as format from './format.js';
import { History } from './history.js';
import { Letters } from './letters.js';
import { Overview } from './overview.js';
import { merged, Replicas } from './replicas.js';
import { Story, Tasks } from './tasks.js';
import { followTheme } from './theme.js';

const LOOK_MS = 5_000;
/** Figures come every second: after so many without any, what is shown is old. */
const STALE_MS = 4_000;

const history = new History();
const overview = new Overview(history);
const letters = new Letters();
const tasks = new Tasks();
const story = new Story();

/** What `/v1/replicas` said last, by address. */
let details = new Map();
let figuresAt = null;
let looking = null;
let soon = null;

const table = new Replicas((replica) => {
  if (replica) details.set(replica.replica, replica);
  lookSoon();
});

function drawReplicas(fresh = true) {
  const figures = fresh ? history.last?.replicas : null;
  table.draw([...details.values()].map((replica) => merged(replica, figures?.get(replica.replica))));
}

function offer(select, replicas) {
  const known = [...select.options].slice(1).map((option) => option.value);
  if (known.join('\n') === replicas.join('\n')) return;
  const chosen = select.value;
  select.length = 1;
  for (const replica of replicas) select.append(new Option(format.node(replica), replica));
  if (chosen && !replicas.includes(chosen)) select.append(new Option(format.node(chosen), chosen));
  select.value = chosen;
}

/** Asks for what the figures do not hold. One such question at a time. */
async function look() {
  if (looking) return looking;
  looking = (async () => {
    try {
      const { replicas } = await get('v1/replicas');
      details = new Map(replicas.map((replica) => [replica.replica, replica]));
      const names = [...details.keys()];
      for (const select of [byId('plot-of'), ...document.querySelectorAll('[data-replicas]')]) offer(select, names);
      drawReplicas();
    } catch {
      // The stream finds out as well, and says so.
    }
    await lookAtHealth();
    looking = null;
  })();
  return looking;
}

async function lookAtHealth() {
  const banner = byId('health');
  try {
    const { status, reason } = await get('health');
    banner.hidden = status === 'healthy';
    setText(banner, reason ? `Degraded: ${reason}.` : 'Degraded: the queue is nearly full. New writes may be refused soon.');
  } catch (error) {
    // Without an answer, the state of the stream says it.
    if (error.status !== 503) return;
    banner.hidden = false;
    setText(banner, 'Unhealthy: the store has failed, nothing is accepted until a restart. The log says why.');
  }
}

function lookSoon() {
  soon ??= setTimeout(() => {
    soon = null;
    look();
  }, 200);
}

function onFigures(figures) {
  const before = history.last?.all;
  history.add(figures);
  const last = history.last.all;
  if (last !== figures) return;
  format.heardAt(figures.at);
  figuresAt = performance.now();
  overview.drawSummary(figures);
  drawReplicas();
  overview.drawPlots();
  showStale();
  const unknown = figures.replicas.some(({ replica }) => !details.has(replica));
  if (unknown || details.size > figures.replicas.length || before?.dead_letters !== figures.dead_letters) lookSoon();
  if (before && before.dead_letters !== figures.dead_letters) letters.changed();
}

function onEvent(kind, data) {
  if (kind === 'figures') onFigures(data);
  else if (kind === 'task') story.happened(data);
  else if (kind === 'replica') {
    overview.happened(data);
    lookSoon();
  } else if (kind === 'lagged') {
    lookSoon();
    story.refresh();
  }
}

let lost = null;

function onState(state, why) {
  const link = byId('link');
  if (state === 'lost') {
    lost = why;
    setAttribute(link, 'data-state', 'lost');
    setText(byId('link-text'), 'Disconnected');
  } else if (state === 'live') {
    const again = lost !== null;
    lost = null;
    setAttribute(link, 'data-state', 'live');
    setText(byId('link-text'), 'Live');
    look();
    story.refresh();
    if (again) announce('Connected again.');
  }
  showStale();
}

/** Says how old what is shown is, as soon as it is not of this second. */
function showStale() {
  const age = figuresAt === null ? 0 : performance.now() - figuresAt;
  const old = age > STALE_MS;
  const gone = lost !== null;
  document.body.classList.toggle('old', gone || old);
  byId('link-retry').hidden = !gone;
  byId('stale').hidden = !gone && !old;
  const why = gone ? `Disconnected: ${lost}.` : 'No figures are coming.';
  const since = figuresAt === null ? '' : ` What is shown is from ${format.clock(history.last.at)}.`;
  setText(byId('stale'), `${why}${gone ? ' Trying again.' : ''}${since}`);
}

const stream = new Stream(onEvent, onState);

function parsed(hash) {
  const [path, search = ''] = hash.replace(/^#\/?/, '').split('?');
  const [name, ...rest] = path.split('/');
  return { name, id: decodeURIComponent(rest.join('/')), filter: Object.fromEntries(new URLSearchParams(search)) };
}

/** Shows the view that the address names. */
function route() {
  const { name, id, filter } = parsed(location.hash);
  const view = { tasks: 'tasks', task: 'task', 'dead-letters': 'letters' }[name] ?? 'overview';
  for (const other of ['overview', 'tasks', 'task', 'letters']) byId(`view-${other}`).hidden = other !== view;
  for (const anchor of document.querySelectorAll('nav a')) {
    const here = anchor.dataset.view === view || (anchor.dataset.view === 'tasks' && view === 'task');
    setAttribute(anchor, 'aria-current', here ? 'page' : null);
  }
  if (view !== 'task') story.close();
  if (view === 'tasks') tasks.show(filter);
  else if (view === 'letters') letters.show(filter);
  else if (view === 'task') story.show(id);
  else overview.drawPlots();
  // Every task's events are a lot to read: only while a story is open.
  stream.want(view === 'task' ? 'task,replica,figures' : 'replica,figures');
}

function onHashChange() {
  route();
  scrollTo(0, 0);
  byId('main').focus({ preventScroll: true });
}

byId('link-retry').addEventListener('click', () => stream.again());
byId('sign-in').addEventListener('click', (event) => act(event.currentTarget, 'No token', async () => {
  await enterToken();
  stream.again();
  route();
}));
byId('sign-out').addEventListener('click', () => {
  forgetToken();
  stream.again();
});
onToken((state) => {
  byId('sign-in').hidden = state !== 'wanted';
  byId('sign-out').hidden = state !== 'held';
});

followTheme(byId('theme'));
byId('skip').addEventListener('click', (event) => {
  // The address names the view: it is left alone.
  event.preventDefault();
  byId('main').focus();
});
addEventListener('hashchange', onHashChange);
document.addEventListener('visibilitychange', () => document.hidden || look());
setInterval(() => document.hidden || lost !== null || look(), LOOK_MS);
setInterval(() => {
  showStale();
  story.tick();
}, 1_000);

route();
stream.run();
