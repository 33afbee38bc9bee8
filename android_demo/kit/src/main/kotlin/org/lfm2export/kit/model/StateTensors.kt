package org.lfm2export.kit.model

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.lfm2export.kit.bundle.ElementType
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.TensorSpec

/** One state tensor: the memory that the program reads and writes in place, whole, in native byte order. */
class StateTensor(val spec: TensorSpec, val buffer: ByteBuffer)

/**
 * The state of one conversation, which the caller owns in the explicit form: allocated once, passed to every call, never
 * copied. Direct buffers, since ExecuTorch takes their address.
 */
class StateTensors(
    specs: List<TensorSpec>,
    allocate: (TensorSpec, Int) -> ByteBuffer = { _, bytes -> ByteBuffer.allocateDirect(bytes) },
) {
    val tensors: List<StateTensor>
    val bytes: Long

    init {
        val sizes = specs.map { spec -> spec to size(spec) }
        bytes = sizes.sumOf { it.second }
        if (bytes > MOST_BYTES) throw Refusal("the state needs ${bytes shr 20} MiB, this app takes at most ${MOST_BYTES shr 20}; export a smaller window")
        tensors = sizes.map { (spec, size) ->
            val buffer = allocate(spec, size.toInt()).order(ByteOrder.nativeOrder())
            check(buffer.isDirect && buffer.capacity().toLong() == size) { "${spec.name}: not a direct buffer of $size bytes" }
            StateTensor(spec, buffer)
        }
        forget()
    }

    /** A new conversation: zero what calls replace. Of a cache, attention sees only what lies below the position. */
    fun forget() {
        for (tensor in whole()) zero(tensor.buffer)
    }

    private fun whole() = tensors.filter { it.spec.replaced == true }

    /** Go on as of the first [count] verified tokens, by the columns that each tensor that calls replace would have been made of. */
    fun goOn(columns: Map<TensorSpec, FloatArray>, count: Int) {
        for (tensor in whole()) {
            val (_, kept, width) = tensor.spec.shape
            val made = columns.getValue(tensor.spec)
            tensor.buffer.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer().put(made, count * width, kept * width)
        }
    }

    private fun zero(buffer: ByteBuffer) {
        val all = buffer.duplicate()
        all.clear()
        all.put(ByteArray(all.capacity()))
    }

    private fun size(spec: TensorSpec): Long {
        if (spec.replaced == null) throw Refusal("state '${spec.name.take(40)}' is unknown to this app")
        if (spec.type == ElementType.INT64) throw Refusal("state ${spec.name} holds integers")
        return spec.shape.fold(spec.type.bytes.toLong()) { product, size ->
            if (size < 1 || product > MOST_BYTES) throw Refusal("state ${spec.name}: impossible shape ${spec.shape}")
            product * size
        }
    }

    companion object {
        private const val MOST_BYTES = 1L shl 30
    }
}
