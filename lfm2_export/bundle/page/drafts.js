// Guesses at the next tokens, which the model verifies together: as lfm2_export/chat/drafts.py, which says why.
const RUNS = [8, 4, 2]; // tokens that are looked up together
const DIFFERENCE = 8; // tokens behind which a copy and its original may agree again
const [PRIOR, MEMORY] = [0.65, 0.1]; // acceptance before anything is known, and the weight of each guess that is judged
const GUESS = 0.23; // what each guess costs, in steps
const [CREDIT, EARNED, MOST] = [2, 0.005, 8]; // steps that drafts may lose: at first, more with each call, and in all
const SHORT = 2; // guesses where drafts have lost

/**
 * What followed the longest run of last tokens the last time it occurred; again and again, where it is short. Where none
 * did, what followed the last token behind a difference of the last draft's copy.
 */
export class Lookup {
  #ends = new Map(); // run of tokens → where its last occurrence ends
  #indexed = 0;
  #original = 0; // from where
  #copy = 0; // and to where the last draft copied; the text itself, at first

  /** Up to `most` tokens that may follow all that was `seen`, which may only grow. */
  guess(seen, most) {
    for (let end = Math.max(this.#indexed, 1); end < seen.length; end++) {
      for (const size of RUNS) if (size <= end) this.#ends.set(run(seen, end, size), end);
    }
    this.#indexed = seen.length;
    const start = this.#behindRun(seen) ?? this.#behindDifference(seen);
    if (start === undefined) return [];
    [this.#original, this.#copy] = [start, seen.length];
    return Array.from({ length: most }, (_, at) => seen[start + (at % (seen.length - start))]);
  }

  #behindRun(seen) {
    const size = RUNS.find((size) => size < seen.length && this.#ends.has(run(seen, seen.length, size)));
    return size && this.#ends.get(run(seen, seen.length, size));
  }

  #behindDifference(seen) {
    for (; this.#copy < seen.length && seen[this.#original] === seen[this.#copy]; this.#copy++) this.#original++;
    if (seen.length - this.#copy > DIFFERENCE) return undefined;
    const end = Math.min(this.#original + 1 + DIFFERENCE, seen.length - 1);
    for (let at = this.#original + 1; at < end; at++) if (seen[at] === seen.at(-1)) return at + 1;
    return undefined;
  }
}

/** A source, and how long its drafts are, by how many guesses were right lately; they pay for themselves. */
export class Drafts {
  drafted = 0;
  accepted = 0;
  #source;
  #acceptance = PRIOR;
  #credit = CREDIT; // steps

  constructor(source = new Lookup()) {
    this.#source = source;
  }

  /** Guesses at what follows, at most that many; none that there is no credit for. Once for each call. */
  propose(seen, most) {
    this.#credit = Math.min(MOST, this.#credit + EARNED);
    if (this.#credit < CREDIT) most = Math.min(most, SHORT);
    const length = bestLength(this.#acceptance, most) || Math.min(most, SHORT);
    return length && GUESS * length <= this.#credit ? this.#source.guess(seen, length) : [];
  }

  /** Take note of how many guesses of a draft were right. Behind the first wrong one none is judged. */
  judged(drafted, accepted) {
    this.drafted += drafted;
    this.accepted += accepted;
    this.#credit = Math.min(MOST, this.#credit + accepted - GUESS * drafted);
    for (let right = 0; right < accepted; right++) this.#acceptance += MEMORY * (1 - this.#acceptance);
    if (accepted < drafted) this.#acceptance -= MEMORY * this.#acceptance;
  }
}

/** How many guesses, each right with that probability, give the most tokens for the time; 0 for none. */
function bestLength(acceptance, most) {
  let [best, length, expected] = [1, 0, 1];
  for (let guesses = 1; guesses <= most; guesses++) {
    expected += acceptance ** guesses;
    const gain = expected / (1 + GUESS * guesses);
    if (gain > best) [best, length] = [gain, guesses];
  }
  return length;
}

function run(tokens, end, size) {
  return tokens.slice(end - size, end).join();
}
