package org.lfm2export.kit.text

import java.util.Random
import org.json.JSONArray
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Test
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused

class PreTokenizerTest {
    private fun assertSplit(text: String, vararg pieces: String) = assertEquals(pieces.toList(), PreTokenizer.split(text))

    @Test fun wordsTakeTheSpaceBeforeThem() = assertSplit("Hello big world", "Hello", " big", " world")

    @Test fun contractionsStandAlone() = assertSplit("it's WE'LL 'sa", "it", "'s", " WE", "'LL", " '", "sa")

    @Test fun digitsComeInThrees() = assertSplit("1234567", "123", "456", "7")

    @Test fun spacesLeaveOneToTheWord() = assertSplit("a   b  ", "a", "  ", " b", "  ")

    @Test fun lineBreaksEndARunOfSpace() = assertSplit("a \n\n  b\n", "a", " \n\n", " ", " b", "\n")

    @Test fun symbolsTakeLineBreaksAlong() = assertSplit("a?!\n\nb (c", "a", "?!\n\n", "b", " (", "c")

    @Test fun oneSymbolGoesWithAWord() = assertSplit("(word) 🙂x", "(word", ")", " 🙂", "x")

    @Test fun emptyTextHasNoPieces() = assertSplit("")

    @Test fun piecesJoinToTheText() {
        val random = Random(1)
        val alphabet = "ab'sS 19\n\r\t.,!éß漢字🙂\u00a0\u3000\u0301ſ½".codePoints().toArray()
        repeat(2000) {
            val text = (0 until random.nextInt(20)).joinToString("") { String(Character.toChars(alphabet[random.nextInt(alphabet.size)])) }
            assertEquals(text, PreTokenizer.split(text).joinToString(""))
        }
    }
}

class MergerTest {
    /** Merging as it is defined, by searching the whole word each time. */
    private fun plainly(symbols: List<Int>, merges: Map<Long, Merger.Merge>): List<Int> {
        val ids = symbols.toMutableList()
        while (true) {
            val best = (0 until ids.size - 1).filter { Merger.key(ids[it], ids[it + 1]) in merges }
                .minByOrNull { merges.getValue(Merger.key(ids[it], ids[it + 1])).rank } ?: return ids
            ids[best] = merges.getValue(Merger.key(ids[best], ids[best + 1])).id
            ids.removeAt(best + 1)
        }
    }

    @Test fun mergesAsTheDefinitionSays() {
        val random = Random(2)
        repeat(300) {
            val merges = HashMap<Long, Merger.Merge>()
            for (rank in 0 until 12) merges[Merger.key(random.nextInt(4 + rank), random.nextInt(4 + rank))] = Merger.Merge(rank, 4 + rank)
            val word = List(random.nextInt(30)) { random.nextInt(4) }
            assertEquals(plainly(word, merges), Merger(merges).merge(word.toIntArray()).toList())
        }
    }

    /** Searching the whole word for each merge would take longer than the tests may run. */
    @Test fun longWordsDoNotStall() {
        val merges = (0 until 10).associate { Merger.key(it, it) to Merger.Merge(it, it + 1) }
        assertEquals(488 + 2, Merger(merges).merge(IntArray(500_000)).size) // 488 × 1024 + 256 + 32
    }
}

class TokenizerTest {
    private fun tokenizer(bend: (JSONObject) -> Unit = {}) = Tokenizer.parse(TinyBundle.tokenizer().also(bend).toString(), "tokenizer.json")

    private fun model(json: JSONObject) = json.getJSONObject("model")

    private fun refused(fragment: String, bend: (JSONObject) -> Unit) = assertRefused(fragment) { tokenizer(bend) }

    @Test fun specialTokensAreRecognized() {
        val ids = tokenizer().encode("<|startoftext|>a<|im_end|>\n<|im_en")
        assertArrayEquals(intArrayOf(256, 97, 258, 10) + "<|im_en".map { it.code }, ids)
    }

    @Test fun longestAddedTokenWins() {
        val longer = tokenizer { it.getJSONArray("added_tokens").put(TinyBundle.added("<|im_end|>!", 259)) }
        assertArrayEquals(intArrayOf(259, 258), longer.encode("<|im_end|>!<|im_end|>"))
    }

    @Test fun mergesAreReadInBothSpellings() {
        for (merge in listOf<Any>("a b", JSONArray(listOf("a", "b")))) {
            val merging = tokenizer {
                model(it).getJSONObject("vocab").put("ab", 259)
                model(it).getJSONArray("merges").put(merge)
            }
            assertArrayEquals(intArrayOf(259, 97), merging.encode("aba"))
        }
    }

    @Test fun wholeWordsComeFirstWhereTheFileSaysSo() {
        val whole = tokenizer {
            model(it).put("ignore_merges", true).getJSONObject("vocab").put("abc", 259)
        }
        assertArrayEquals(intArrayOf(259), whole.encode("abc"))
    }

    @Test fun unknownIdsHaveNoText() {
        assertNull(tokenizer().textOf(259))
        assertEquals(0, tokenizer().bytesOf(259).size)
    }

    @Test fun whatItWouldNotFollowIsRefused() {
        refused("normalizer") { it.put("normalizer", JSONObject().put("type", "NFC")) }
        refused("type") { model(it).put("type", "Unigram") }
        refused("decoder") { it.getJSONObject("decoder").put("type", "Metaspace") }
        refused("byte_fallback") { model(it).put("byte_fallback", true) }
        refused("unk_token") { model(it).put("unk_token", "<unk>") }
        refused("lstrip") { it.getJSONArray("added_tokens").getJSONObject(0).put("lstrip", true) }
        refused("vocab") { model(it).getJSONObject("vocab").remove("a") }
        refused("merges") { model(it).getJSONArray("merges").put("a b") }
        refused("merges") { model(it).getJSONArray("merges").put(7) }
        val steps = { json: JSONObject -> json.getJSONObject("pre_tokenizer").getJSONArray("pretokenizers") }
        refused("pattern") { steps(it).getJSONObject(0).getJSONObject("pattern").put("Regex", "\\s+") }
        refused("behavior") { steps(it).getJSONObject(0).put("behavior", "Removed") }
        refused("prefix") { steps(it).getJSONObject(1).put("add_prefix_space", true) }
        refused("pretokenizers") { steps(it).remove(1) }
    }
}

class TextStreamTest {
    private fun pieces(vararg bytes: Int): List<String> {
        val stream = TextStream()
        return bytes.map { stream.add(byteArrayOf(it.toByte())) } + stream.finish()
    }

    @Test fun characterAppearsWithItsLastByte() = assertEquals(listOf("", "", "", "🙂", "a", ""), pieces(0xf0, 0x9f, 0x99, 0x82, 0x61))

    @Test fun bytesThatFormNoCharacterAreMarked() {
        assertEquals("\ufffda", pieces(0xff, 0x61).joinToString(""))
        assertEquals("a\ufffd", pieces(0x61, 0xe2, 0x82).joinToString(""))
    }

    @Test fun severalBytesAtOnce() = assertEquals("é漢", TextStream().add("é漢".toByteArray()))
}

class ByteAlphabetTest {
    @Test fun everyByteHasItsOwnCharacterAndComesBack() {
        assertEquals(256, ByteAlphabet.chars.toSet().size)
        for (byte in 0..255) assertArrayEquals(byteArrayOf(byte.toByte()), ByteAlphabet.bytesOf(ByteAlphabet.chars[byte].toString()))
    }

    @Test fun spaceAndLineBreakAreTheKnownOnes() {
        assertEquals('Ġ', ByteAlphabet.chars[' '.code])
        assertEquals('Ċ', ByteAlphabet.chars['\n'.code])
    }

    @Test fun addedTokensMayHoldAnyText() = assertArrayEquals("漢 a".toByteArray(), ByteAlphabet.bytesOf("漢 a"))
}
