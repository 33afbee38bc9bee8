package org.lfm2export.kit.text

/**
 * The split into words that LFM2's tokenizer makes before it merges bytes, as a hand-written scanner of its one regular
 * expression. Android's regular expressions are not the JVM's, and neither reads `\s` and `(?i)` as the tokenizer does;
 * this runs alike everywhere. Only the Unicode tables of the platform decide what a letter is.
 */
object PreTokenizer {
    /** The expression that [split] stands for, alternative by alternative. */
    const val PATTERN =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|" +
            "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

    private val CONTRACTIONS = listOf("s", "t", "re", "ve", "m", "ll", "d")

    /** Pieces that, joined, are [text] again. */
    fun split(text: String): List<String> {
        val pieces = mutableListOf<String>()
        var start = 0
        while (start < text.length) {
            val end = endOfPiece(text, start)
            pieces += text.substring(start, end)
            start = end
        }
        return pieces
    }

    private fun endOfPiece(text: String, start: Int): Int =
        contraction(text, start) ?: word(text, start) ?: digits(text, start) ?: symbols(text, start) ?: spaces(text, start)

    private fun contraction(text: String, start: Int): Int? {
        if (text[start] != '\'') return null
        val ending = CONTRACTIONS.firstOrNull { ending ->
            start + ending.length < text.length && ending.indices.all { sameLetter(text[start + 1 + it], ending[it]) }
        }
        return ending?.let { start + 1 + it.length }
    }

    /** Without regard to case, and with the long s (U+017F), whose capital is S. */
    private fun sameLetter(char: Char, letter: Char) = char == letter || char == letter.uppercaseChar() || (char == 'ſ' && letter == 's')

    /** Letters, after at most one character that is neither letter, number nor line break. */
    private fun word(text: String, start: Int): Int? {
        val first = text.codePointAt(start)
        val letters = if (isLetter(first) || isNumber(first) || isLineBreak(first)) start else start + Character.charCount(first)
        val end = run(text, letters, ::isLetter)
        return end.takeIf { it > letters }
    }

    private fun digits(text: String, start: Int): Int? = run(text, start, ::isNumber, most = 3).takeIf { it > start }

    /** What is neither space, letter nor number, after at most one space, with the line breaks behind it. */
    private fun symbols(text: String, start: Int): Int? {
        val from = if (text[start] == ' ') start + 1 else start
        val end = run(text, from, ::isSymbol)
        return if (end > from) run(text, end, ::isLineBreak) else null
    }

    /** White space up to its last line break; else all of it but one before a word, which takes that one along. */
    private fun spaces(text: String, start: Int): Int {
        val end = run(text, start, ::isSpace)
        val lastBreak = (end - 1 downTo start).firstOrNull { isLineBreak(text[it].code) }
        return when {
            lastBreak != null -> lastBreak + 1
            end == text.length || end - start == 1 -> end // every white space is one UTF-16 unit
            else -> end - 1
        }
    }

    private fun run(text: String, start: Int, belongs: (Int) -> Boolean, most: Int = Int.MAX_VALUE): Int {
        var end = start
        var count = 0
        while (end < text.length && count < most) {
            val point = text.codePointAt(end)
            if (!belongs(point)) break
            end += Character.charCount(point)
            count++
        }
        return end
    }

    private fun isLetter(point: Int) = Character.isLetter(point)

    private fun isNumber(point: Int) =
        when (Character.getType(point).toByte()) {
            Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
            else -> false
        }

    private fun isLineBreak(point: Int) = point == '\r'.code || point == '\n'.code

    /** Unicode's White_Space. */
    private fun isSpace(point: Int) = point in 0x09..0x0d || point == 0x85 || Character.isSpaceChar(point)

    private fun isSymbol(point: Int) = !isSpace(point) && !isLetter(point) && !isNumber(point)
}
