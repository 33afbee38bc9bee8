package org.lfm2export.kit.device

import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.ElementType
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.model.Program
import org.lfm2export.kit.model.StateTensor
import org.lfm2export.kit.model.StateTensors
import org.lfm2export.kit.model.Verified
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A `.pte` through ExecuTorch's `Module`: tokens, position, then the caller's state, which is written in place. */
class ModuleProgram(bundle: Bundle, state: StateTensors?) : Program {
    private val method = bundle.manifest.method
    private val verifier = bundle.manifest.verifier?.method
    private val state = state?.tensors.orEmpty().map { EValue.from(stateTensor(it)) }
    private val module = load(bundle)

    override fun call(tokens: LongArray, position: Long): FloatArray {
        return execute(method, tokens, position).single()
    }

    override fun verify(tokens: LongArray, position: Long): Verified {
        val outputs = execute(verifier ?: return super.verify(tokens, position), tokens, position)
        return Verified(outputs.first(), outputs.drop(1))
    }

    /** Copied: a tensor is the program's own memory, until the next call. */
    private fun execute(method: String, tokens: LongArray, position: Long): List<FloatArray> {
        val inputs = listOf(integers(tokens, longArrayOf(1, tokens.size.toLong())), integers(longArrayOf(position), longArrayOf(1)))
        return module.execute(method, *(inputs + state).toTypedArray()).map { it.toTensor().dataAsFloatArray }
    }

    override fun close() = module.destroy()

    private fun integers(values: LongArray, shape: LongArray): EValue {
        val buffer = ByteBuffer.allocateDirect(values.size * Long.SIZE_BYTES).order(ByteOrder.nativeOrder()).asLongBuffer()
        buffer.put(values)
        buffer.rewind()
        return EValue.from(Tensor.fromBlob(buffer, shape))
    }

    private fun load(bundle: Bundle): Module {
        val module = Module.load(bundle.program.path, Module.LOAD_MODE_MMAP)
        if (method !in module.getMethods()) {
            module.destroy()
            throw Refusal("${bundle.program.name}: no method '$method'")
        }
        module.loadMethod(method)
        return module
    }

    companion object {
        /** The tensor over a state's own memory: no copy, now or in a call. */
        fun stateTensor(tensor: StateTensor): Tensor {
            val shape = LongArray(tensor.spec.shape.size) { tensor.spec.shape[it].toLong() }
            return when (tensor.spec.type) {
                ElementType.FLOAT32 -> Tensor.fromBlob(tensor.buffer.asFloatBuffer(), shape)
                ElementType.FLOAT16 -> Tensor.fromBlob(tensor.buffer.asShortBuffer(), shape)
                ElementType.INT64 -> throw Refusal("state ${tensor.spec.name} holds integers")
            }
        }
    }
}
