package org.lfm2export.kit.text

/** The 256 printable characters that stand for bytes in a byte-level vocabulary (GPT-2's table). */
object ByteAlphabet {
    private val printable = ('!'.code..'~'.code) + ('¡'.code..'¬'.code) + ('®'.code..'ÿ'.code)

    /** The character of each byte: itself where it prints, else the next one from U+0100 on. */
    val chars: CharArray = CharArray(256).also { chars ->
        var spare = 0x100
        for (byte in 0..255) chars[byte] = if (byte in printable) byte.toChar() else (spare++).toChar()
    }

    private val bytes: Map<Char, Byte> = chars.indices.associate { chars[it] to it.toByte() }

    /** The bytes that a token's text stands for; its UTF-8 where it holds a character of no byte, as added tokens may. */
    fun bytesOf(token: String): ByteArray {
        val decoded = ByteArray(token.length)
        for ((at, char) in token.withIndex()) decoded[at] = bytes[char] ?: return token.toByteArray()
        return decoded
    }
}
