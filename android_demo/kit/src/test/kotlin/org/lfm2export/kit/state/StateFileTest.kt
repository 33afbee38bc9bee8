package org.lfm2export.kit.state

import java.io.File
import java.util.Random
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.PythonJson
import org.lfm2export.kit.model.StateTensors

class StateFileTest {
    @get:Rule val temporary = TemporaryFolder()

    private val manifest = Manifest.parse(TinyBundle.slidingManifest().toString())
    private val state = StateTensors(manifest.state)
    private val file by lazy { File(temporary.root, "a.state") }
    private val tools = listOf(JSONObject("""{"type": "function", "name": "f", "x": [1, 0.5, null]}"""))
    private val chat = SavedChat(listOf(1, 2, 97), listOf(Message("user", "a 🙂\n\u007f")), tools)

    /** Every value random, as if any number of tokens had been seen. */
    private fun fill(seed: Long) {
        val random = Random(seed)
        for (tensor in state.tensors) {
            for (at in 0 until tensor.buffer.capacity() / 2) {
                val value = Half.ofFloat(random.nextGaussian().toFloat()).toShort()
                if (tensor.spec.type.bytes == 2) tensor.buffer.putShort(2 * at, value) else if (at % 2 == 0) tensor.buffer.putFloat(2 * at, random.nextFloat())
            }
        }
    }

    private fun bytes() = state.tensors.map { tensor -> ByteArray(tensor.buffer.capacity()) { tensor.buffer.get(it) } }

    private fun stateFile(of: Manifest = manifest) = StateFile(file, of, state)

    private fun written(): ByteArray {
        fill(1)
        stateFile().write(chat)
        return file.readBytes()
    }

    @Test fun whatIsWrittenIsRead() {
        written()
        val before = bytes()
        fill(2)
        val other = bytes()
        val read = stateFile().read()
        assertEquals(chat.tokens, read.tokens)
        assertEquals(chat.messages, read.messages)
        assertEquals(tools.map(PythonJson::text), read.tools.map(PythonJson::text))
        state.tensors.forEachIndexed { at, tensor ->
            val width = tensor.spec.type.bytes
            val seen = if (tensor.spec.replaced == true) before[at] else { // a cache: three columns of each head, the others as they were
                val (heads, window, _, values) = tensor.spec.shape
                other[at].also { for (head in 0 until heads) before[at].copyInto(it, head * window * values * width, head * window * values * width, (head * window + 3) * values * width) }
            }
            assertArrayEquals(tensor.spec.name, seen, bytes()[at])
        }
    }

    @Test fun theSameStateGivesTheSameBytesAndLeavesNothingBeside() {
        assertArrayEquals(written(), written())
        assertEquals(listOf("a.state"), temporary.root.list()?.toList())
    }

    @Test fun anEmptyConversationIsOne() {
        stateFile().write(SavedChat(emptyList(), emptyList(), emptyList()))
        assertEquals(0, stateFile().read().tokens.size)
    }

    @Test fun noDamageGoesUnnoticed() {
        val sound = written()
        for (at in sound.indices) {
            file.writeBytes(sound.copyOf().also { it[at] = (it[at].toInt() xor (1 shl at % 8)).toByte() })
            assertRefused("a.state") { stateFile().read() }
        }
        for (length in 0 until sound.size step 7) {
            file.writeBytes(sound.copyOf(length))
            assertRefused("a.state") { stateFile().read() }
        }
        file.writeBytes(sound + 0)
        assertRefused("no tensor") { stateFile().read() }
    }

    @Test fun aStateFitsOnlyTheModelItCameFrom() {
        written()
        val entry = manifest.files.getValue("model.pte")
        val others = mapOf(
            "another model" to manifest.copy(files = mapOf("model.pte" to entry.copy(sha256 = "0".repeat(64)))),
            "window" to manifest.copy(window = 65),
            "vocabulary" to manifest.copy(vocabSize = 97),
        )
        for ((reason, other) in others) assertRefused(reason) { stateFile(other).read() }
        val withMore = manifest.copy(files = manifest.files + ("tokenizer.json" to entry.copy(sha256 = "0".repeat(64))))
        assertEquals(3, stateFile(withMore).read().tokens.size) // only what decides the numbers counts
    }

    @Test fun whatCannotBeIsRefused() {
        assertRefused("no such file") { stateFile().read() }
        assertRefused("cannot be written") { StateFile(File(temporary.root, "none/a.state"), manifest, state).write(chat) }
        assertRefused("shorten") { stateFile().write(SavedChat(listOf(1), listOf(Message("user", "a".repeat(2 shl 20))), emptyList())) }
        file.writeBytes(ByteArray(5 shl 20))
        assertRefused("at most") { stateFile().read() }
    }
}

class HalfTest {
    @Test fun everyHalfIsItselfAgain() {
        for (bits in 0..0xffff) {
            val value = Half.toFloat(bits)
            if (value.isNaN()) assertTrue(Half.toFloat(Half.ofFloat(value)).isNaN()) else assertEquals(bits, Half.ofFloat(value))
        }
    }

    @Test fun othersAreRoundedToTheNearestOrTheEvenOne() {
        for (bits in 0 until 0x7bff) {
            val low = Half.toFloat(bits)
            val high = Half.toFloat(bits + 1)
            val between = (low + high) / 2 // exact
            assertEquals(bits + bits % 2, Half.ofFloat(between))
            assertEquals(bits, Half.ofFloat(Math.nextDown(between)))
            assertEquals(bits + 1, Half.ofFloat(Math.nextUp(between)))
        }
        assertEquals(0x7bff, Half.ofFloat(65519.996f))
        assertEquals(0x7c00, Half.ofFloat(65520f))
        assertEquals(0xfc00, Half.ofFloat(Float.NEGATIVE_INFINITY))
    }
}
