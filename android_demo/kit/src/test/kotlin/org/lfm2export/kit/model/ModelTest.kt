package org.lfm2export.kit.model

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Random
import java.util.concurrent.CancellationException
import kotlin.math.abs
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertSame
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused
import org.lfm2export.kit.bundle.ElementType
import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.bundle.TensorSpec

/** Likes [favourite] best, and remembers how it was called. */
class FakeProgram(private val favourite: (position: Long, tokens: LongArray) -> Int) : Program {
    val calls = mutableListOf<Pair<Long, List<Long>>>()

    override fun call(tokens: LongArray, position: Long): FloatArray {
        calls += position to tokens.toList()
        return FloatArray(TinyBundle.VOCAB).also {
            it[TinyBundle.END] = 1f
            it[favourite(position, tokens)] = 2f
        }
    }

    /** As so many calls; the columns of token n hold its position. */
    override fun verify(tokens: LongArray, position: Long): Verified {
        val rows = tokens.indices.map { call(longArrayOf(tokens[it]), position + it) }
        calls.subList(calls.size - tokens.size, calls.size).clear()
        calls += position to tokens.toList()
        return Verified(rows.flatMap { it.toList() }.toFloatArray(), listOf(FloatArray((2 + tokens.size) * 3) { position - 2f + it / 3 }))
    }

    override fun close() = Unit
}

class StateTensorsTest {
    private val specs = TinyBundle.parsedManifest().state

    private fun floats(buffer: ByteBuffer) = buffer.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer()

    @Test fun buffersAreDirectNativeAndOfTheRightSize() {
        val state = StateTensors(specs)
        assertEquals(listOf(24, 1024, 1024), state.tensors.map { it.buffer.capacity() })
        assertTrue(state.tensors.all { it.buffer.isDirect && it.buffer.order() == ByteOrder.nativeOrder() })
        assertEquals(2072L, state.bytes)
    }

    @Test fun forgettingZeroesTheConvStatesAndNotTheCaches() {
        val state = StateTensors(specs)
        for (tensor in state.tensors) while (tensor.buffer.hasRemaining()) tensor.buffer.put(7)
        val same = state.tensors.map { it.buffer }
        state.forget()
        assertTrue((0 until 24).all { state.tensors[0].buffer.get(it) == 0.toByte() })
        assertTrue((0 until 1024).all { state.tensors[1].buffer.get(it) == 7.toByte() })
        state.tensors.zip(same).forEach { (tensor, buffer) -> assertSame(buffer, tensor.buffer) }
    }

    @Test fun memoryThatHeldAnotherConversationStartsAtZero() {
        val state = StateTensors(specs, { _, bytes -> ByteBuffer.allocateDirect(bytes).also { while (it.hasRemaining()) it.put(9) }.also { it.clear() } })
        assertEquals(0f, floats(state.tensors[0].buffer).get(5))
    }

    @Test fun absurdShapesAreRefused() {
        for (shape in listOf(listOf(1 shl 30, 1 shl 30, 1 shl 30, 1 shl 30), listOf(-1), listOf(0), listOf(1 shl 29))) {
            assertRefused("") { StateTensors(listOf(TensorSpec("key.0", ElementType.FLOAT32, shape, true))) }
        }
    }

    @Test fun stateOfAnotherKindIsRefused() {
        assertRefused("unknown") { StateTensors(listOf(TensorSpec("mystery", ElementType.FLOAT32, listOf(1), true))) }
        assertRefused("integers") { StateTensors(listOf(TensorSpec("key.0", ElementType.INT64, listOf(1), true))) }
    }

    @Test fun memoryThatIsNotDirectIsAMistake() {
        assertThrows(IllegalStateException::class.java) { StateTensors(specs, { _, bytes -> ByteBuffer.allocate(bytes) }) }
    }
}

class SessionTest {
    private val program = FakeProgram { _, _ -> 97 }
    private val session = Session(program, TinyBundle.parsedManifest(), state = null)

    @Test fun longPromptsGoInByChunks() {
        session.feed(IntArray(40) { it })
        assertEquals(listOf(0L to 16, 16L to 16, 32L to 8), program.calls.map { it.first to it.second.size })
        assertEquals(40, session.position)
    }

    @Test fun windowsEdgeIsReachedAndNotPassed() {
        session.feed(IntArray(63))
        session.feed(IntArray(1))
        val calls = program.calls.size
        assertRefused("full") { session.feed(IntArray(1)) }
        assertEquals(calls, program.calls.size)
        assertEquals(64, session.position)
    }

    @Test fun tokensOutsideTheVocabularyAreRefused() {
        for (token in listOf(-1, TinyBundle.VOCAB)) assertRefused("vocabulary") { session.feed(intArrayOf(token)) }
        assertRefused("nothing") { session.feed(IntArray(0)) }
        assertEquals(0, program.calls.size)
    }

    @Test fun stoppingKeepsThePositionRight() {
        var asked = 0
        assertThrows(CancellationException::class.java) { session.feed(IntArray(40)) { asked++ == 1 } }
        assertEquals(16, session.position)
    }

    @Test fun resetGoesBackAndForgets() {
        val state = StateTensors(TinyBundle.parsedManifest().state)
        val owner = Session(program, TinyBundle.parsedManifest(), state)
        owner.feed(IntArray(3))
        state.tensors[0].buffer.put(0, 5)
        owner.reset()
        assertEquals(0, owner.position)
        assertEquals(0.toByte(), state.tensors[0].buffer.get(0))
    }

    @Test fun whatIsKeptOfADraftIsWhatWasSeen() {
        val manifest = TinyBundle.parsedManifest()
        val state = StateTensors(manifest.state)
        val session = Session(program, manifest, state)
        session.feed(IntArray(5))
        assertEquals(4, session.verify(IntArray(4) { it }).size)
        assertEquals(5, session.position)
        session.keep(3)
        assertEquals(8, session.position)
        val kept = state.tensors[0].buffer.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer()
        assertEquals(listOf(6f, 6f, 6f, 7f, 7f, 7f), List(6) { kept.get(it) }) // the last two tokens
    }

    @Test fun slidingAttentionsStatesGoOnAsConvolutionsDoEachByItsOwnColumns() {
        val manifest = Manifest.parse(TinyBundle.slidingManifest().toString())
        val state = StateTensors(manifest.state)
        assertEquals(listOf(true, false, false, true, true), manifest.state.map { it.replaced })
        val told = object : Program by program { // value, key, convolution; token n's column holds n, by which state
            override fun verify(tokens: LongArray, position: Long): Verified {
                val logits = FloatArray(tokens.size * TinyBundle.VOCAB)
                val columns = listOf(200f to 4, 100f to 4, 0f to 2).map { (which, kept) ->
                    val width = if (kept == 4) 2 else 3
                    FloatArray((kept + tokens.size) * width) { which + position - kept + it / width }
                }
                return Verified(logits, columns)
            }
        }
        val session = Session(told, manifest, state)
        session.feed(IntArray(9))
        session.verify(IntArray(5))
        session.keep(2) // the last token is the tenth

        fun held(at: Int): List<Float> {
            val values = state.tensors[at].buffer.duplicate().order(ByteOrder.nativeOrder()).asFloatBuffer()
            return List(values.remaining()) { values.get(it) }
        }
        assertEquals(listOf(9f, 9f, 9f, 10f, 10f, 10f), held(0))
        assertEquals(listOf(107f, 107f, 108f, 108f, 109f, 109f, 110f, 110f), held(3))
        assertEquals(listOf(207f, 207f, 208f, 208f, 209f, 209f, 210f, 210f), held(4))
        session.reset()
        assertTrue(listOf(0, 3, 4).all { at -> held(at).all { it == 0f } })
    }

    @Test fun draftsThatAreTooLongOrComeOutOtherwiseAreRefused() {
        assertRefused("to verify") { session.verify(IntArray(9)) }
        assertRefused("vocabulary") { session.verify(intArrayOf(-1)) }
        val other = object : Program by program {
            override fun verify(tokens: LongArray, position: Long) = Verified(FloatArray(tokens.size * TinyBundle.VOCAB), emptyList())
        }
        assertRefused("verified") { Session(other, TinyBundle.parsedManifest(), null).verify(IntArray(2)) }
    }

    @Test fun logitsOfTheWrongNumberAreRefused() {
        val short = object : Program {
            override fun call(tokens: LongArray, position: Long) = FloatArray(3)

            override fun close() = Unit
        }
        assertRefused("logits") { Session(short, TinyBundle.parsedManifest(), null).feed(intArrayOf(1)) }
    }
}

class SamplerTest {
    private val logits = floatArrayOf(1f, 3f, 2.9f, -4f, 3f)

    @Test fun greedyTakesTheLowestIdAmongEquals() = assertEquals(1, Sampler.GREEDY.choose(logits, emptyList()))

    @Test fun penaltyMakesRepetitionLessLikely() {
        val sampler = Sampler(temperature = 0.0, repetitionPenalty = 1.05)
        assertEquals(4, sampler.choose(logits, listOf(1, 1)))
        assertEquals(listOf(1.0, 3 / 1.05, -4 * 1.05), sampler.penalized(logits, listOf(1, 3)).let { listOf(it[0], it[1], it[3]) })
    }

    @Test fun unlikelyTokensAreNeverDrawn() {
        val sampler = Sampler(temperature = 1.0, minP = 0.5, repetitionPenalty = 1.0, random = Random(3))
        val drawn = List(2000) { sampler.choose(logits, emptyList()) }
        assertEquals(setOf(1, 2, 4), drawn.toSet())
    }

    @Test fun drawsFollowTheWeights() {
        val sampler = Sampler(temperature = 0.5, minP = 0.0, repetitionPenalty = 1.0, random = Random(4))
        val weights = sampler.weights(sampler.penalized(logits, emptyList()))
        val draws = 20_000
        val counts = IntArray(5).also { counts -> repeat(draws) { counts[sampler.choose(logits, emptyList())]++ } }
        for (token in 0 until 5) assertTrue(abs(counts[token].toDouble() / draws - weights[token] / weights.sum()) < 0.015)
    }

    @Test fun defaultsAreWhatLfm2Recommends() {
        val weights = Sampler().let { it.weights(it.penalized(floatArrayOf(0f, -0.5f, -0.6f), emptyList())) }
        assertEquals(Math.exp(-0.5 / 0.3), weights[1], 1e-9)
        assertEquals(0.0, weights[2], 0.0) // below 0.15 of the best
    }

    @Test fun settingsAndLogitsThatMakeNoSenseAreRefused() {
        assertRefused("sampling") { Sampler(temperature = -1.0) }
        assertRefused("sampling") { Sampler(minP = 2.0) }
        assertRefused("sampling") { Sampler(repetitionPenalty = 0.0) }
        assertRefused("not numbers") { Sampler().choose(floatArrayOf(1f, Float.NaN), emptyList()) }
    }
}

class ParityCheckTest {
    private val golden = Golden.parse(TinyBundle.golden().toString(), TinyBundle.VOCAB)

    private fun check(program: Program) = ParityCheck(Session(program, TinyBundle.parsedManifest(), null), golden).run()

    private fun answering(best: Float, end: Float) = object : Program {
        override fun call(tokens: LongArray, position: Long) = FloatArray(TinyBundle.VOCAB).also {
            it[97] = best
            it[TinyBundle.END] = end
        }

        override fun close() = Unit
    }

    @Test fun sameLogitsPass() {
        val report = check(FakeProgram { _, _ -> 97 })
        assertTrue(report.passed)
        assertEquals(listOf(CaseReport(1, 1, 0.0, true)), report.cases)
    }

    @Test fun smallErrorsPassAndLargeOnesFail() {
        assertTrue(check(answering(2.019f, 1f)).passed)
        val failed = check(answering(2.021f, 1f))
        assertFalse(failed.passed)
        assertTrue("FAIL" in failed.lines().first())
    }

    @Test fun anotherTokenFails() = assertFalse(check(FakeProgram { _, _ -> 50 }).passed)

    @Test fun logitsThatAreNoNumbersFail() {
        val report = check(answering(Float.NaN, 1f))
        assertFalse(report.passed)
        assertTrue(report.cases.single().error.isNaN())
    }
}
