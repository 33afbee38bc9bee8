package org.lfm2export.kit.device

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.model.StateTensors
import org.pytorch.executorch.DType

/** ExecuTorch's own Java classes, as far as they run without its native library. */
class StateTensorTest {
    private val state = StateTensors(TinyBundle.parsedManifest().state)

    @Test fun tensorsHaveTheManifestsShapesAndTypes() {
        val tensors = state.tensors.map(ModuleProgram::stateTensor)
        assertEquals(listOf(DType.FLOAT, DType.HALF, DType.HALF), tensors.map { it.dtype() })
        assertArrayEquals(longArrayOf(2, 64, 1, 4), tensors[1].shape())
    }

    @Test fun tensorsAreTheStatesOwnMemory() {
        val tensor = ModuleProgram.stateTensor(state.tensors[0])
        state.tensors[0].buffer.asFloatBuffer().put(4, 2.5f)
        assertArrayEquals(floatArrayOf(0f, 0f, 0f, 0f, 2.5f, 0f), tensor.dataAsFloatArray, 0f)
    }
}
