package org.lfm2export.kit.state

/** IEEE 754's 16-bit floats, as a cache may hold them; Android has them from API 26 on, the JVM from Java 20. */
internal object Half {
    private const val NAN = 0x7e00
    private const val INFINITY = 0x7c00

    /** The float that the lower 16 of [bits] stand for: exactly. */
    fun toFloat(bits: Int): Float {
        val sign = if (bits and 0x8000 != 0) -1f else 1f
        val exponent = bits shr 10 and 0x1f
        val fraction = bits and 0x3ff
        return when (exponent) {
            0 -> sign * Math.scalb(fraction.toFloat(), -24)
            0x1f -> if (fraction == 0) sign * Float.POSITIVE_INFINITY else Float.NaN
            else -> sign * Math.scalb((fraction or 0x400).toFloat(), exponent - 25)
        }
    }

    /** The bits of the nearest one, of two as near the even one. */
    fun ofFloat(value: Float): Int {
        val sign = value.toRawBits() ushr 16 and 0x8000
        if (value.isNaN()) return sign or NAN
        val size = Math.abs(value)
        if (size >= 65520f) return sign or INFINITY // halfway between the largest and what would follow it
        val exponent = maxOf(Math.getExponent(size), -14)
        val steps = Math.rint(Math.scalb(size.toDouble(), 10 - exponent)).toInt() // of the exponent's size: 1024 to 2048, fewer for the smallest
        return sign or ((exponent + 14 shl 10) + steps) // a step more than the exponent has is the next exponent's first
    }
}
