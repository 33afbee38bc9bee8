package org.lfm2export.kit.text

import org.lfm2export.kit.bundle.Json
import org.lfm2export.kit.bundle.Refusal

/**
 * LFM2's byte-level BPE tokenizer, read from Hugging Face's `tokenizer.json`.
 *
 * It does what `tokenizers` does with that file and `add_special_tokens=False`, and refuses a file that asks for
 * anything else: another model, normalizer, word pattern or kind of added token.
 */
class Tokenizer private constructor(
    private val ids: Map<String, Int>,
    private val texts: Map<Int, String>,
    private val merger: Merger,
    private val wholeWords: Boolean,
    private val first: AddedTokens,
    private val second: AddedTokens,
) {
    private val byteIds = IntArray(256) { ids.getValue(ByteAlphabet.chars[it].toString()) }

    /** Token ids of [text]; special tokens in it are recognized, none are added. */
    fun encode(text: String): IntArray {
        val tokens = mutableListOf<Int>()
        first.split(text, { rest -> second.split(rest, { encodePlain(it, tokens) }, tokens::add) }, tokens::add)
        return tokens.toIntArray()
    }

    /** A token's text as the vocabulary spells it; null for an id that it does not have. */
    fun textOf(id: Int): String? = texts[id]

    /** The bytes of a token; none for an id of the model's padding, which the vocabulary does not have. */
    fun bytesOf(id: Int): ByteArray = texts[id]?.let(ByteAlphabet::bytesOf) ?: ByteArray(0)

    private fun encodePlain(text: String, tokens: MutableList<Int>) {
        for (word in PreTokenizer.split(text)) {
            val bytes = word.toByteArray()
            val whole = if (wholeWords) ids[bytes.joinToString("") { ByteAlphabet.chars[it.toInt() and 255].toString() }] else null
            if (whole != null) {
                tokens += whole
            } else {
                merger.merge(IntArray(bytes.size) { byteIds[bytes[it].toInt() and 255] }).forEach(tokens::add)
            }
        }
    }

    companion object {
        /** Refusal for a tokenizer that this class would not follow exactly. */
        fun parse(json: Json): Tokenizer {
            if (json.has("normalizer")) json.refuse("normalizer", "this app knows none")
            checkWords(json.child("pre_tokenizer"))
            if (json.child("decoder").text("type") != "ByteLevel") json.refuse("decoder", "expected ByteLevel")
            val model = json.child("model")
            checkModel(model)
            val vocabulary = model.child("vocab")
            val words = vocabulary.names.associateWith { vocabulary.whole(it).toInt() }
            for (char in ByteAlphabet.chars) if (char.toString() !in words) model.refuse("vocab", "no token for byte '$char'")
            val added = json.children("added_tokens").onEach(::checkAdded)
            val (second, first) = added.partition { it.flag("normalized") }.let { (a, b) -> table(a) to table(b) }
            val all = words + first + second
            return Tokenizer(
                words,
                all.entries.associate { (text, id) -> id to text },
                Merger(readMerges(model, words)),
                model.has("ignore_merges") && model.flag("ignore_merges"),
                AddedTokens(first),
                AddedTokens(second),
            )
        }

        private fun table(tokens: List<Json>) = tokens.associate { it.text("content") to it.whole("id").toInt() }

        private fun checkWords(json: Json) {
            val steps = if (json.text("type") == "Sequence") json.children("pretokenizers") else json.refuse("type", "expected Sequence")
            if (steps.map { it.text("type") } != listOf("Split", "ByteLevel")) json.refuse("pretokenizers", "expected Split and ByteLevel")
            val (split, bytes) = steps
            if (split.child("pattern").text("Regex") != PreTokenizer.PATTERN) split.refuse("pattern", "not the one this app knows")
            if (split.text("behavior") != "Isolated" || split.flag("invert")) split.refuse("behavior", "expected Isolated")
            if (bytes.flag("add_prefix_space") || bytes.flag("use_regex")) bytes.refuse("use_regex", "expected no second pattern and no prefix")
        }

        private fun checkModel(json: Json) {
            if (json.text("type") != "BPE") json.refuse("type", "expected BPE")
            val unknown = listOf("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix").filter(json::has) +
                listOf("fuse_unk", "byte_fallback").filter { json.has(it) && json.flag(it) }
            if (unknown.isNotEmpty()) json.refuse(unknown.first(), "unknown to this app")
        }

        private fun checkAdded(json: Json) {
            if (json.text("content").isEmpty()) json.refuse("content", "empty")
            for (name in listOf("single_word", "lstrip", "rstrip")) {
                if (json.flag(name)) json.refuse(name, "${json.text("content")} asks for what this app does not do")
            }
        }

        private fun readMerges(model: Json, ids: Map<String, Int>): Map<Long, Merger.Merge> {
            val merges = HashMap<Long, Merger.Merge>()
            for ((rank, item) in model.items("merges").withIndex()) {
                val (left, right) = readPair(item) ?: model.refuse("merges", "expected pairs of tokens")
                val whole = ids[left + right]
                val pair = ids[left]?.let { one -> ids[right]?.let { other -> Merger.key(one, other) } }
                if (whole == null || pair == null) model.refuse("merges", "'$left' and '$right' are not in the vocabulary")
                merges[pair] = Merger.Merge(rank, whole)
            }
            return merges
        }

        /** `["a", "b"]`, or `"a b"` in older files. */
        private fun readPair(item: Any): Pair<String, String>? {
            val parts = when (item) {
                is org.json.JSONArray -> (0 until item.length()).map { item.opt(it) as? String ?: return null }
                is String -> item.split(' ')
                else -> return null
            }
            return if (parts.size == 2) parts[0] to parts[1] else null
        }

        /** Read a `tokenizer.json`, naming it in errors. */
        fun parse(text: String, where: String): Tokenizer =
            try {
                parse(Json.parse(text, where))
            } catch (error: Refusal) {
                throw Refusal("${error.message}; this app needs LFM2's own tokenizer", error)
            }
    }
}
