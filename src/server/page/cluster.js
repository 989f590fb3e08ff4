// The instances and partitions of a cluster store.

import { get } from './api.js';
import { byId, cell, el, keyed, setAttribute, setText } from './dom.js';
import * as format from './format.js';

const STATES = { no_owner: 'no instance delivers it', no_leader: 'no server leads it' };

/** Shows them; hides the section for a daemon with a data directory. */
export async function lookAtCluster(isShared) {
  byId('cluster').hidden = !isShared;
  if (!isShared) return;
  const { members, partitions, store } = await get('v1/cluster');
  const make = (member) => el('tr', {}, cell('Instance', {}, member.node), cell('State'), cell('Partitions'), cell('Up'), cell('Version'));
  // Two runs may have one name.
  const named = members.map((member, at) => ({ ...member, key: `${at} ${member.node}` }));
  keyed(byId('members').tBodies[0], named, ({ key }) => key, make, (row, member) => {
    const state = member.leaving ? 'stopping' : member.draining ? 'draining' : 'live';
    const owned = partitions.filter(({ owner }) => owner === member.node).map(({ number }) => number);
    const values = [state, owned.length === 0 ? 'none' : format.ranges(owned), format.coarse(member.up_for_seconds), member.version];
    [...row.cells].slice(1).forEach((field, at) => setText(field, values[at]));
  });
  const broken = Object.entries(STATES).map(([state, text]) => [partitions.filter((one) => one.state === state), text]);
  const problems = broken.filter(([of]) => of.length > 0).map(([of, text]) => `Partitions ${format.ranges(of.map(({ number }) => number))}: ${text}.`);
  const lag = !store.lag ? '' : ` The slowest copy lacks ${format.plural(store.lag, 'operation')}.`;
  setText(byId('cluster-note'), problems.length > 0 ? problems.join(' ') : `All ${format.plural(partitions.length, 'partition')} are delivered.${lag}`);
  setAttribute(byId('cluster-note'), 'data-level', problems.length > 0 ? 'bad' : null);
}
