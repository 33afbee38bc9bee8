package org.lfm2export.demo.model

import java.io.Closeable

/** The one method of a loaded `.pte`, with the state, whoever holds it. */
interface Program : Closeable {
    /** Logits `[vocab]` after [tokens], the first of which stands at [position]. */
    fun call(tokens: LongArray, position: Long): FloatArray
}
