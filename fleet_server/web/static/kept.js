"use strict";
// Keeps what was entered on this phone, and offers it to a server that was restored from a backup and may have forgotten it.
// A page tells what the server has of the work order it shows; what it had once is kept, whatever it has later.
(() => {
  const page = JSON.parse(document.getElementById("kept").textContent);
  const notice = document.getElementById("offered");
  const name = (what) => `${what}/${page.actor}`;
  const read = (what, otherwise) => JSON.parse(localStorage.getItem(name(what)) ?? JSON.stringify(otherwise));
  const write = (what, value) => localStorage.setItem(name(what), JSON.stringify(value));

  const merged = (former, now, id) => [...new Map([...former, ...now].map((item) => [item[id], item])).values()];

  function keep() {
    const orders = read("kept", {});
    const oldest = Date.now() - page.days * 86400000;
    for (const [id, order] of Object.entries(orders)) if (order.kept_at < oldest) delete orders[id];
    for (const [id, order] of Object.entries(page.orders)) {
      if (!order.depot.length && !order.visits.length) continue;
      const former = orders[id] ?? { depot: [], visits: [] };
      const visits = order.visits.map((visit) => {
        const known = former.visits.find((other) => other.visit_id === visit.visit_id);
        return { ...visit, operations: merged(known?.operations ?? [], visit.operations, "operation_id") };
      });
      orders[id] = {
        kept_at: Date.now(),
        depot: merged(former.depot, order.depot, "operation_id"),
        visits: merged(former.visits, visits, "visit_id"),
      };
    }
    write("kept", orders);
  }

  function tell(text, values) {
    notice.textContent = text.replace(/\{(\w+)\}/g, (_, key) => values[key]);
    notice.hidden = false;
  }

  async function offer() {
    const said = notice.dataset;
    const orders = Object.values(read("kept", {}));
    if (orders.length) tell(said.offering, {});
    const verdicts = { booked: 0, known: 0, refused: 0 };
    for (const { depot, visits } of orders) {
      const answer = await fetch("/api/v1/recovery/operations", {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": page.csrf },
        body: JSON.stringify({ depot, visits }),
      });
      if (answer.status === 409) break; // long ago: nothing is taken any more
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      for (const { verdict } of (await answer.json()).results) {
        verdicts[{ booked: "booked", waiting: "booked", refused: "refused" }[verdict] ?? "known"] += 1;
      }
    }
    if (orders.length) tell(said.taken + (verdicts.refused ? ` ${said.refused}` : ""), verdicts);
    if (!verdicts.refused) write("epoch", page.epoch);
  }

  keep();
  const known = read("epoch", page.epoch);
  if (known === page.epoch) write("epoch", page.epoch);
  else offer().catch(() => tell(notice.dataset.failed, {}));
})();
