package org.lfm2export.kit.chat

import java.math.BigDecimal
import java.math.MathContext
import java.math.RoundingMode
import org.json.JSONArray
import org.json.JSONObject

/** JSON as Python's `json.dumps` writes it. IllegalArgumentException for what is no JSON value. */
class PythonJson private constructor(private val comma: String, private val colon: String, private val onlyAscii: Boolean) {
    private fun written(value: Any) = StringBuilder().apply { write(value) }.toString()

    private fun StringBuilder.write(value: Any) {
        when (value) {
            is JSONObject -> writeAll(value.keys().asSequence().toList(), '{', '}') { name ->
                writeString(name)
                append(colon)
                write(value.get(name))
            }
            is JSONArray -> writeAll((0 until value.length()).toList(), '[', ']') { write(value.get(it)) }
            is String -> writeString(value)
            is Boolean, is Int, is Long -> append(value)
            is Double -> append(float(value))
            JSONObject.NULL -> append("null")
            else -> throw IllegalArgumentException("${value::class.java.simpleName} is no JSON value")
        }
    }

    private fun <T> StringBuilder.writeAll(items: List<T>, open: Char, close: Char, one: (T) -> Unit) {
        append(open)
        for ((at, item) in items.withIndex()) {
            if (at > 0) append(comma)
            one(item)
        }
        append(close)
    }

    private fun StringBuilder.writeString(text: String) {
        append('"')
        for (char in text) {
            when (char) {
                '"' -> append("\\\"")
                '\\' -> append("\\\\")
                '\n' -> append("\\n")
                '\r' -> append("\\r")
                '\t' -> append("\\t")
                '\b' -> append("\\b")
                '\u000c' -> append("\\f")
                else -> if (char < ' ' || (onlyAscii && char > '~')) append("\\u%04x".format(char.code)) else append(char)
            }
        }
        append('"')
    }

    companion object {
        private val ROUNDINGS = listOf(RoundingMode.HALF_EVEN, RoundingMode.FLOOR, RoundingMode.CEILING)
        private val TEXT = PythonJson(", ", ": ", onlyAscii = false)
        private val ASCII = PythonJson(", ", ": ", onlyAscii = true)
        private val COMPACT = PythonJson(",", ":", onlyAscii = true)

        /** With `ensure_ascii=False`, which is what chat templates see of a tool. */
        fun text(value: Any): String = TEXT.written(value)

        /** As it is by default. */
        fun ascii(value: Any): String = ASCII.written(value)

        /** Without spaces. */
        fun compact(value: Any): String = COMPACT.written(value)

        /** The shortest digits that read back as [value], in Python's layout: `0.0001`, `1e-05`, `1e+16`, `2.0`. */
        internal fun float(value: Double): String {
            if (value == 0.0) return if (1 / value < 0) "-0.0" else "0.0"
            val exact = BigDecimal(value)
            val shortest = (1..17).firstNotNullOf { digits ->
                // beside a power of two the nearest decimal may miss while its neighbour does not
                ROUNDINGS.map { exact.round(MathContext(digits, it)) }.firstOrNull { it.toDouble() == value }
            }.stripTrailingZeros()
            val digits = shortest.unscaledValue().abs().toString()
            val exponent = digits.length - 1 - shortest.scale()
            val sign = if (value < 0) "-" else ""
            if (exponent in -4..15) {
                val plain = shortest.abs().toPlainString()
                return sign + if ('.' in plain) plain else "$plain.0"
            }
            val mantissa = if (digits.length == 1) digits else digits[0] + "." + digits.substring(1)
            return "%s%se%s%02d".format(sign, mantissa, if (exponent < 0) "-" else "+", kotlin.math.abs(exponent))
        }
    }
}
