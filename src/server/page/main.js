// Entry point of the page: subscribes to events, polls details, and routes between the views.
//
// No build step and no library. `events` and `history` provide the figures; `overview`, `replicas`
// and `plot` show them; `letters`, `operations` and `tasks` are the other views; `api` sends every
// request; `dom` and `format` are helpers.

import { enterToken, forgetToken, get, onToken } from './api.js';
import { lookAtCluster } from './cluster.js';
import { act, announce } from './dialogs.js';
import { byId, el, keyed, setAttribute, setText } from './dom.js';
import { Stream } from './events.js';
import * as format from './format.js';
import { History } from './history.js';
import { Letters } from './letters.js';
import { Overview } from './overview.js';
import { inOrder, merged, Replicas } from './replicas.js';
import { Story, Tasks } from './tasks.js';
import { followTheme } from './theme.js';

const LOOK_MS = 5_000;
/** Figures arrive every second. After this silence they are stale. */
const STALE_MS = 4_000;

/** How often the figures of a replica, which are fewer, are loaded again. */
const PAST_MS = 60_000;

const history = new History();
const overview = new Overview(history);
const letters = new Letters();
const tasks = new Tasks();
const story = new Story();

/** The last response of `/v1/replicas`, by address. */
let details = new Map();
let figuresAt = null;
let looking = null;
let soon = null;

const table = new Replicas((replica) => {
  if (replica) details.set(replica.replica, replica);
  lookSoon();
});

function drawReplicas(fresh = true) {
  // The figures of one instance say less than the details, which are those of the cluster.
  const figures = fresh && byId('cluster').hidden ? history.last?.replicas : null;
  const replicas = [...details.values()].map((replica) => merged(replica, figures?.get(replica.replica)));
  table.draw(inOrder(replicas));
}

/** Says which partitions of the cluster are missing above or below. */
function showLack(node, incomplete) {
  const text = format.lack(incomplete);
  node.hidden = text === '';
  setText(node, text);
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

/** Loads details that the figures lack. Only one load runs at a time. */
async function look() {
  if (looking) return looking;
  looking = (async () => {
    try {
      const { replicas, incomplete } = await get('v1/replicas');
      showLack(byId('replicas-lack'), incomplete);
      details = new Map(replicas.map((replica) => [replica.replica, replica]));
      const names = [...details.keys()];
      for (const select of [byId('plot-of'), ...document.querySelectorAll('[data-replicas]')]) offer(select, names);
      drawReplicas();
    } catch {
      // The stream notices and reports it as well.
    }
    await Promise.all([lookAtHealth(), lookAtInstance()]);
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
    // The state of the stream reports an unreachable daemon.
    if (error.status !== 503) return;
    banner.hidden = false;
    setText(banner, 'Unhealthy: the store has failed. Writes are refused until a restart. See the log for the reason.');
  }
}

async function lookAtInstance() {
  try {
    const instance = await get('v1/instance');
    const { queue_tasks: tasks, queue_capacity: capacity, disk_free_bytes: free, store } = instance;
    const stores = { working: 'working', disk_low: 'disk nearly full', stalled: 'does not answer', store_failed: 'failed' };
    setText(byId('instance-name'), instance.node_id);
    const facts = [
      ['address', location.host],
      ['version', instance.version],
      ['up', format.coarse(instance.uptime_seconds)],
      ['queue', `${format.count(tasks)} / ${format.count(capacity)}`, tasks >= 0.9 * capacity],
      ['disk free', free === null ? 'unknown' : format.bytes(free), store === 'disk_low'],
      ['store', instance.draining ? 'shutting down' : stores[store] ?? store, instance.draining || store !== 'working'],
    ];
    const make = ([name]) => el('div', {}, el('dt', {}, name), el('dd'));
    keyed(byId('instance'), facts, ([name]) => name, make, (node, [, value, bad]) => {
      setText(node.lastElementChild, value);
      setAttribute(node, 'data-bad', bad ? '' : null);
    });
    byId('instance').hidden = false;
    await lookAtCluster(instance.cluster !== undefined);
    const { node_id: name } = instance;
    overview.named(name === 'replicator' ? location.host : name);
  } catch {
    // The state of the stream reports an unreachable daemon.
  }
}

/** Loads what the daemon kept from before this page was open. */
async function lookAtPast() {
  const replica = byId('plot-of').value;
  try {
    let past = await get('v1/history');
    history.keep(past);
    if (replica) {
      past = await get(`v1/history?replica=${encodeURIComponent(replica)}`);
      history.keep(past);
    }
    showLack(byId('plots-lack'), past.incomplete);
    overview.drawPlots();
  } catch {
    // The plots then begin with the page.
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
  format.syncClock(figures.at);
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
    lookAtPast();
    story.refresh();
    if (again) announce('Reconnected.');
  }
  showStale();
}

function showStale() {
  const age = figuresAt === null ? 0 : performance.now() - figuresAt;
  const old = age > STALE_MS;
  const gone = lost !== null;
  document.body.classList.toggle('old', gone || old);
  byId('link-retry').hidden = !gone;
  byId('stale').hidden = !gone && !old;
  const why = gone ? `Disconnected: ${lost}.` : 'No new figures are arriving.';
  const since = figuresAt === null ? '' : ` The figures shown are from ${format.clock(history.last.at)}.`;
  setText(byId('stale'), `${why}${gone ? ' Reconnecting.' : ''}${since}`);
}

const stream = new Stream(onEvent, onState);

function parsed(hash) {
  const [path, search = ''] = hash.replace(/^#\/?/, '').split('?');
  const [name, ...rest] = path.split('/');
  return { name, id: decodeURIComponent(rest.join('/')), filter: Object.fromEntries(new URLSearchParams(search)) };
}

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
  // Task events are many: subscribe only while a task is open.
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
// What is scrolled into view, as by the Tab key, must not end up behind the bar.
new ResizeObserver(([{ target }]) => {
  const covers = getComputedStyle(target).position === 'sticky';
  document.documentElement.style.scrollPaddingTop = covers ? `${target.offsetHeight}px` : '';
}).observe(document.querySelector('.bar'));
byId('skip').addEventListener('click', (event) => {
  // The hash names the view and must not change.
  event.preventDefault();
  byId('main').focus();
});
addEventListener('hashchange', onHashChange);
document.addEventListener('visibilitychange', () => document.hidden || look());
byId('plot-of').addEventListener('change', lookAtPast);
setInterval(() => document.hidden || lost !== null || look(), LOOK_MS);
setInterval(() => document.hidden || lost !== null || lookAtPast(), PAST_MS);
setInterval(() => {
  showStale();
  story.tick();
}, 1_000);

route();
stream.run();
