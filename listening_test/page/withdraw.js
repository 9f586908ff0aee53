// Leaving the study and taking all of it along: a button, a second step, and then it is gone.

import { insist, store, whyLater } from "./net.js";

const $ = (id) => document.getElementById(id);

export const withdrawing = () => $("withdraw-dialog").open;

// `onAsked` runs when the second step opens, `onDone` when nothing is kept on the server any more.
export function offerWithdrawal(onAsked, onDone) {
  const dialog = $("withdraw-dialog");
  let busy = false;
  const tell = (text) => {
    $("withdraw-trouble").textContent = text;
    $("withdraw-trouble").hidden = !text;
  };
  $("withdraw").addEventListener("click", () => { onAsked(); tell(""); dialog.showModal(); });
  $("withdraw-not").addEventListener("click", () => dialog.close());
  $("withdraw-yes").addEventListener("click", async () => {
    if (busy) return;
    busy = true;
    let lost = false;  // an answer: it may have been done all the same
    // By its ticket a server that lost its disk knows whom not to take back from an old copy.
    const body = { confirmed: true, ticket: store.get("ticket") ?? undefined };
    try {
      await insist("withdraw", body, (error) => {
        lost = true;
        tell(whyLater(error));
      });
    } catch (error) {
      if (!(lost && error.code === "no_session")) { tell(error.message); return; }
    } finally {
      busy = false;
    }
    store.clear();
    dialog.close();
    onDone();
  });
}
