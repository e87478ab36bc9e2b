const $ = id => document.getElementById(id), url = new URL('predict', location.href)
const number = v => v === '' ? null : isFinite(v) ? Number(v) : v
const whole = v => Number.isSafeInteger(number(v)) ? number(v) : v
const inputs = form => [...form.elements].filter(e => e.name)
const other = e => $(e.id.replace('f', 'o')), is = e => e.selectedOptions[0].dataset.is
const chosen = e => is(e) === 'missing' ? null : is(e) === 'other' ? other(e).value : e.value
const sent = e => e.tagName === 'SELECT' ? chosen(e) : number(e.value.trim())
const bodies = {features: f => Object.fromEntries(inputs(f).map(e => [e.name, sent(e)])),
                customer: ([e]) => ({customer_id: e.dataset.is === 'text' ? e.value.trim() : whole(e.value.trim())})}
const quoted = text => `'${text.replaceAll("'", "'\\''")}'`
const curl = body => $('curl').textContent =
  `curl -s ${url} -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(body))}`
const percent = p => (100 * p).toFixed(1) + ' %'
const signed = x => (x < 0 ? '\u2212' : '+') + (100 * Math.abs(x)).toFixed(1)
const make = (tag, text, attributes = {}, ns) => {
  const e = ns ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v)
  e.append(...[text].flat().filter(x => x !== null)); return e
}
async function post(body, explain) {
  const began = performance.now()
  const request = {method: 'POST', headers: {'Content-Type': 'application/json'}, body: JSON.stringify(body)}
  const r = await fetch(explain ? url + '?explain=true' : url, request)
  const a = await r.json(), own = /total;dur=([\d.]+)/.exec(r.headers.get('server-timing') || '')
  const by = r.headers.get('x-backend')
  return {ok: r.ok, a, time: `${(performance.now() - began).toFixed(1)} ms` +
    (own ? `, of which ${Number(own[1]).toFixed(2)} ms in the server` : '') + (by ? `; computed by ${by}` : '')}
}
function bar(x, most) {
  const w = 98 * Math.abs(x) / most, g = (tag, a) => make(tag, null, a, true)
  const rect = {x: x < 0 ? 100 - w : 100, y: 3, width: w, height: 10, class: x < 0 ? 'down' : 'up'}
  return make('svg', [g('path', {d: 'M100 0 V16', stroke: 'currentColor'}), g('rect', rect)],
              {viewBox: '0 0 200 16', 'aria-hidden': true}, true)
}
function explained(a) {
  const all = Object.entries(a.contributions), shown = all.filter(c => Math.abs(c[1]) >= .0005).slice(0, 12)
  const sum = list => list.reduce((s, c) => s + c[1], 0), rest = all.length - shown.length
  const others = sum(all) - sum(shown)
  if (rest) shown.push([`${rest} other${rest > 1 ? 's' : ''}`, others])
  const most = Math.max(...shown.map(c => Math.abs(c[1])), 1e-9)
  const line = (name, b, value) => make('tr', [make('th', name, {scope: 'row'}), make('td', b), make('td', value)])
  return make('table', [make('caption', 'Why: from the reference customer to this one, in percentage points'),
    make('tbody', [line('reference customer', null, percent(a.reference_probability)),
                   ...shown.map(([n, x]) => line(n, bar(x, most), signed(x))),
                   line('this customer', null, percent(a.probability))])])
}
function blame(form, errors) {
  const bad = inputs(form).filter(e => {
    const mine = errors.filter(x => x.field === e.name).map(x => x.message).join('; ')
    $(e.id.replace('f', 'e')).textContent = mine && '\u2717 ' + mine
    if (mine) e.setAttribute('aria-invalid', true); else e.removeAttribute('aria-invalid')
    return mine
  })
  bad[0]?.focus()
}
let asked = 0
async function ask(form, body) {
  curl(body)
  const mine = ++asked
  let got, why = null, note = ''
  try {
    got = await post(body, true)
    if (!got.ok && !got.a.errors && [409, 422, 503].includes(got.a.status)) {
      const plain = await post(body)
      if (plain.ok) note = 'No explanation: ' + got.a.detail
      got = plain
    }
  } catch (e) { got = {a: {detail: 'No answer from the server: ' + e.message}} }
  if (mine !== asked) return
  const a = got.a
  for (const other of document.forms) blame(other, other === form && a.errors || [])
  if (got.ok && a.contributions) why = explained(a)
  if (a.method === 'sampled') note = 'Too many features differ for exact contributions: these are estimates'
  $('answer').textContent = !got.ok ? '\u2717 ' + a.detail :
    `${percent(a.probability)} likely to churn: churn_risk ${a.churn_risk} at the threshold of ${a.threshold}` +
    `, says version ${a.model_version}` +
    (a.missing_features.length ? `. Missing: ${a.missing_features.join(', ')}` : '') +
    (a.unseen_categories?.length ? `. Not seen in training: ${a.unseen_categories.join(', ')}` : '')
  $('answer').className = got.ok ? '' : 'bad'
  $('time').textContent = got.time ? 'Answered in ' + got.time : ''
  $('note').textContent = note
  $('why').replaceChildren(...why ? [why] : [])
  $('json').textContent = JSON.stringify(a, null, 1)
}
for (const id in bodies) {
  $(id)?.addEventListener('submit', e => { e.preventDefault(); ask(e.target, bodies[id](e.target)) })
  $(id)?.addEventListener('input', e => {
    if (e.target.tagName === 'SELECT') other(e.target).hidden = is(e.target) !== 'other'
    curl(bodies[id](e.target.form))
  })
}
