package org.lfm2export.kit.text

import java.nio.ByteBuffer
import java.nio.CharBuffer
import java.nio.charset.CodingErrorAction

/** Tokens' bytes to text; a character appears once all its bytes are there, and bytes that form none as U+FFFD. */
class TextStream {
    private val decoder = Charsets.UTF_8.newDecoder()
        .onMalformedInput(CodingErrorAction.REPLACE)
        .onUnmappableCharacter(CodingErrorAction.REPLACE)
    private var pending = ByteArray(0)

    /** The text that [bytes] complete. */
    fun add(bytes: ByteArray): String = decode(pending + bytes, end = false)

    /** What is left when no more will come. */
    fun finish(): String = decode(pending, end = true)

    private fun decode(bytes: ByteArray, end: Boolean): String {
        val input = ByteBuffer.wrap(bytes)
        val output = CharBuffer.allocate(bytes.size + 1)
        decoder.decode(input, output, end)
        pending = bytes.copyOfRange(input.position(), bytes.size)
        if (end) decoder.flush(output)
        if (end) decoder.reset()
        return String(output.array(), 0, output.position())
    }
}
