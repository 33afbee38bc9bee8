// Guesses at the next tokens, which the model verifies together: as lfm2_export/chat/drafts.py, which says why.
const SIZES = [4, 3, 2]; // of the runs of last tokens that are looked up
const [PRIOR, MEMORY] = [0.6, 0.1]; // acceptance before anything is known, and the weight of each guess that is judged
const GUESS = 0.23; // what each guess costs, in steps
const PROBE = 32; // tokens after which a source that was not worth asking is asked again

/** What followed the longest run of last tokens the last time it occurred; again and again, where it is short. */
export class Lookup {
  #ends = new Map(); // run of tokens → where its last occurrence ends
  #indexed = 0;

  /** Up to `most` tokens that may follow all that was `seen`, which may only grow. */
  guess(seen, most) {
    for (let end = Math.max(this.#indexed, 1); end < seen.length; end++) {
      for (const size of SIZES) if (size <= end) this.#ends.set(run(seen, end, size), end);
    }
    this.#indexed = seen.length;
    for (const size of SIZES) {
      const end = seen.length > size ? this.#ends.get(run(seen, seen.length, size)) : undefined;
      if (end !== undefined) return Array.from({ length: most }, (_, at) => seen[end + (at % (seen.length - end))]);
    }
    return [];
  }
}

/** A source, and how long its drafts are, by how many guesses were right lately. */
export class Drafts {
  drafted = 0;
  accepted = 0;
  #source;
  #acceptance = PRIOR;
  #since = 0; // calls since the source was asked

  constructor(source = new Lookup()) {
    this.#source = source;
  }

  /** Guesses at what follows, at most that many; none where it does not pay. */
  propose(seen, most) {
    const length = bestLength(this.#acceptance, most);
    if (!length && this.#since < PROBE) {
      this.#since += 1;
      return [];
    }
    this.#since = 0;
    return most > 0 ? this.#source.guess(seen, Math.min(length || 2, most)) : [];
  }

  /** Take note of how many guesses of a draft were right. Behind the first wrong one none is judged. */
  judged(drafted, accepted) {
    this.drafted += drafted;
    this.accepted += accepted;
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
