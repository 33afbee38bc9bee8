package org.lfm2export.kit.state

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.json.JSONArray
import org.json.JSONObject
import org.lfm2export.kit.bundle.ElementType
import org.lfm2export.kit.bundle.Json
import org.lfm2export.kit.model.StateTensor

/**
 * A state tensor as a file has it, fp32: a cache `[1, heads, position, width]`, cut to the tokens that were seen; what calls
 * replace `[1, width, columns]`. In memory they are `[heads, window, 1, width]` and `[1, columns, width]`.
 */
internal class StoredTensor(private val tensor: StateTensor, private val position: Int) {
    val name: String get() = tensor.spec.name
    private val replaced = tensor.spec.replaced == true

    val shape: List<Int> = tensor.spec.shape.let { if (replaced) listOf(1, it[2], it[1]) else listOf(1, it[0], position, it[3]) }

    val bytes: Long = shape.fold(Float.SIZE_BYTES.toLong()) { product, size -> product * size }

    /** The state's values, little-endian. */
    fun read(): ByteArray {
        val out = ByteBuffer.allocate(bytes.toInt()).order(ByteOrder.LITTLE_ENDIAN)
        val buffer = tensor.buffer
        if (tensor.spec.type == ElementType.FLOAT16) {
            places { out.putFloat(Half.toFloat(buffer.getShort(it * Short.SIZE_BYTES).toInt())) }
        } else {
            places { out.putFloat(buffer.getFloat(it * Float.SIZE_BYTES)) }
        }
        return out.array()
    }

    /** Set the state to what [read] gave. */
    fun write(values: ByteArray) {
        val input = ByteBuffer.wrap(values).order(ByteOrder.LITTLE_ENDIAN)
        val buffer = tensor.buffer
        if (tensor.spec.type == ElementType.FLOAT16) {
            places { buffer.putShort(it * Short.SIZE_BYTES, Half.ofFloat(input.getFloat()).toShort()) }
        } else {
            places { buffer.putFloat(it * Float.SIZE_BYTES, input.getFloat()) }
        }
    }

    /** Add what a safetensors header says of it, lying at [begin]; where it ends. */
    fun describe(header: JSONObject, begin: Long): Long {
        val end = begin + bytes
        header.put(name, JSONObject().put("dtype", "F32").put("shape", JSONArray(shape)).put("data_offsets", JSONArray(listOf(begin, end))))
        return end
    }

    /** Refuse another description than [describe] gives. */
    fun check(entry: Json, begin: Long): Long {
        val end = begin + bytes
        val fits = entry.text("dtype") == "F32" && entry.wholes("shape") == shape.map { it.toLong() }
        if (!fits) entry.refuse("shape", "expected F32 $shape")
        if (entry.wholes("data_offsets") != listOf(begin, end)) entry.refuse("data_offsets", "expected $begin to $end")
        return end
    }

    /** Where in memory each value of the file lies, in the file's order. */
    private inline fun places(action: (Int) -> Unit) {
        if (replaced) {
            val (_, columns, width) = tensor.spec.shape
            for (row in 0 until width) for (column in 0 until columns) action(column * width + row)
        } else {
            val (heads, window, _, width) = tensor.spec.shape
            for (head in 0 until heads) for (at in 0 until position * width) action(head * window * width + at)
        }
    }
}
