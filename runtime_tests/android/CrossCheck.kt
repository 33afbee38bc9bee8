package org.lfm2export.crosscheck

import java.io.File
import java.io.RandomAccessFile
import java.nio.channels.FileChannel
import java.util.concurrent.Executors
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.take
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.json.JSONArray
import org.json.JSONObject
import org.lfm2export.kit.Assistant
import org.lfm2export.kit.bundle.Bundle
import org.lfm2export.kit.bundle.Manifest
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.TensorSpec
import org.lfm2export.kit.bundle.Unpacker
import org.lfm2export.kit.chat.ChatModel
import org.lfm2export.kit.chat.ChatTemplate
import org.lfm2export.kit.chat.Drafts
import org.lfm2export.kit.chat.ExplicitChat
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.OnFull
import org.lfm2export.kit.chat.PythonJson
import org.lfm2export.kit.chat.ResidentChat
import org.lfm2export.kit.chat.TemplateProof
import org.lfm2export.kit.chat.TextRunner
import org.lfm2export.kit.device.EXECUTORCH_VERSION
import org.lfm2export.kit.device.LoadedModel
import org.lfm2export.kit.model.ParityCheck
import org.lfm2export.kit.model.Program
import org.lfm2export.kit.model.Sampler
import org.lfm2export.kit.model.Session
import org.lfm2export.kit.model.StateTensors
import org.lfm2export.kit.model.Verified
import org.lfm2export.kit.text.TextStream
import org.lfm2export.kit.text.Tokenizer

/**
 * The library's Kotlin, asked by Python: a job a line on standard input, an answer a line on standard output. ExecuTorch
 * itself is Python's: where a job runs a model, the answer is `{"call": …}` first, and the next line is what came of it.
 */
fun main() {
    while (true) {
        val job = JSONObject(readlnOrNull() ?: return)
        say(
            try {
                JSONObject().put("result", answer(job))
            } catch (error: Refusal) {
                JSONObject().put("refused", error.message)
            },
        )
    }
}

private fun say(line: JSONObject) = println(line)

private fun ask(call: JSONObject): JSONObject {
    say(JSONObject().put("call", call))
    return JSONObject(readln())
}

private fun answer(job: JSONObject): Any =
    when (val what = job.getString("do")) {
        "render" -> ChatTemplate(job.getString("bos")).render(messages(job), tools(job), job.getBoolean("generation"))
        "json" -> JSONArray(list(job, "values").map(PythonJson::text))
        "encode" -> tokenizer(job.getString("tokenizer")).let { tokenizer ->
            JSONArray(list(job, "texts").map { JSONArray(tokenizer.encode(it as String).toList()) })
        }
        "unassigned" -> JSONArray((0..Character.MAX_CODE_POINT).filter { Character.getType(it) == 0 })
        "decode" -> decode(tokenizer(job.getString("tokenizer")), list(job, "ids"))
        "weights" -> weights(job)
        "drafts" -> drafts(list(job, "text").map { it as Int }, job.getInt("most"))
        "unpack" -> "".also { File(job.getString("archive")).inputStream().use { Unpacker().unpack(it, File(job.getString("target"))) } }
        "open" -> describe(Bundle.open(File(job.getString("folder")), EXECUTORCH_VERSION))
        "parity" -> parity(job)
        "chat" -> chat(job)
        else -> throw IllegalArgumentException(what)
    }

private fun messages(job: JSONObject) =
    list(job, "messages").map { (it as JSONObject).let { one -> Message(one.getString("role"), one.getString("content")) } }

private fun tools(job: JSONObject) = if (job.has("tools")) list(job, "tools") else emptyList()

private fun list(job: JSONObject, name: String): List<Any> = job.getJSONArray(name).let { all -> (0 until all.length()).map(all::get) }

private fun tokenizer(path: String) = Tokenizer.parse(File(path).readText(), path)

private fun decode(tokenizer: Tokenizer, ids: List<Any>): Any {
    val stream = TextStream()
    return JSONArray(ids.map { stream.add(tokenizer.bytesOf(it as Int)) } + stream.finish())
}

private fun weights(job: JSONObject): JSONArray {
    val logits = list(job, "logits").map { (it as Number).toFloat() }.toFloatArray()
    val sampler = Sampler(job.getDouble("temperature"), job.getDouble("min_p"), job.getDouble("repetition_penalty"))
    val weights = sampler.weights(sampler.penalized(logits, list(job, "seen").map { it as Int }))
    return JSONArray(weights.map { it / weights.sum() })
}

/** Each draft while a text is said, empty ones too. */
private fun drafts(text: List<Int>, most: Int): JSONArray {
    val drafts = Drafts()
    val found = JSONArray()
    var at = 1
    while (at < text.size) {
        val draft = drafts.propose(text.subList(0, at), minOf(most, text.size - at))
        val right = draft.zip(text.subList(at, text.size)).takeWhile { (guess, said) -> guess == said }.size
        if (draft.isNotEmpty()) drafts.judged(draft.size, right)
        found.put(JSONArray(draft))
        at += right + 1
    }
    return found
}

private fun describe(bundle: Bundle): JSONObject =
    JSONObject().put("form", bundle.manifest.form).put("window", bundle.manifest.window).put("state", bundle.manifest.state.size)

/** A program that Python runs; the state lies in files that both sides have mapped, so it is written in place. */
private class RemoteProgram(private val manifest: Manifest, private val outputs: File) : Program {
    override fun call(tokens: LongArray, position: Long): FloatArray = run(manifest.method, tokens, position).single()

    override fun verify(tokens: LongArray, position: Long): Verified =
        run(checkNotNull(manifest.verifier).method, tokens, position).let { Verified(it.first(), it.drop(1)) }

    private fun run(method: String, tokens: LongArray, position: Long): List<FloatArray> {
        val done = ask(JSONObject().put("method", method).put("tokens", JSONArray(tokens.toList())).put("position", position))
        RandomAccessFile(outputs, "r").use { file ->
            val values = file.channel.map(FileChannel.MapMode.READ_ONLY, 0, file.length()).order(java.nio.ByteOrder.nativeOrder()).asFloatBuffer()
            return list(done, "sizes").map { size -> FloatArray(size as Int).also(values::get) }
        }
    }

    override fun close() = Unit
}

private fun mapped(folder: File): (TensorSpec, Int) -> java.nio.ByteBuffer = { spec, bytes ->
    RandomAccessFile(File(folder, spec.name), "rw").use { it.channel.map(FileChannel.MapMode.READ_WRITE, 0, bytes.toLong()) }
}

private class Loaded(job: JSONObject) {
    val bundle = Bundle.open(File(job.getString("folder")), EXECUTORCH_VERSION)
    val tokenizer = tokenizer(bundle.tokenizer.path)
    val template = TemplateProof.proven(bundle.golden(), bundle.manifest.bosId?.let(tokenizer::textOf).orEmpty(), tokenizer)
    private val shared = File(job.getString("shared"))
    private val state = if (bundle.manifest.form == "explicit") StateTensors(bundle.manifest.state, mapped(shared)) else null
    val program = RemoteProgram(bundle.manifest, File(shared, "outputs"))
    val session = Session(program, bundle.manifest, state)
}

private fun parity(job: JSONObject): JSONObject {
    val loaded = Loaded(job)
    val report = ParityCheck(loaded.session, loaded.bundle.golden()).run()
    val errors = report.cases.map { it.error }
    return JSONObject().put("passed", report.passed).put("error", errors.max()).put("same", report.cases.sumOf { it.same })
        .put("steps", report.cases.sumOf { it.steps }).put("lines", JSONArray(report.lines()))
}

/** Conversations of several turns with one [Assistant]: what was said, why it ended, and the tokens fed. */
private fun chat(job: JSONObject): JSONArray = runBlocking {
    val loaded = Loaded(job)
    val thread = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    val assistant = Assistant(LoadedModel(loaded.bundle, model(loaded), loaded.bundle.golden(), loaded.session), thread)
    try {
        JSONArray(
            list(job, "conversations").map { conversation ->
                assistant.begin(job.optString("system"), tools(job), OnFull.valueOf(job.optString("on_full", "STOP")))
                val turns = (conversation as JSONArray).let { all -> (0 until all.length()).map(all::get) }
                JSONArray(turns.map { turn -> turn(assistant, turn, job.getInt("limit"), job.optBoolean("drafting")) })
            },
        )
    } finally {
        assistant.close().join()
    }
}

/** A turn is a text that the user says, or an object: of a text and the pieces of its reply to wait for, of a file. */
private suspend fun turn(assistant: Assistant, turn: Any, limit: Int, drafting: Boolean): JSONObject {
    if (turn is String) return described(assistant, assistant.ask(turn, limit, drafting).toList())
    val what = (turn as JSONObject).keys().next()
    when (what) {
        "save" -> assistant.save(File(turn.getString(what)))
        "load" -> assistant.load(File(turn.getString(what)))
        "cancelled" -> return JSONObject().put("pieces", JSONArray(assistant.ask(turn.getString(what), limit).take(turn.getInt("after")).toList()))
        else -> throw IllegalArgumentException(what)
    }
    return JSONObject()
}

private fun described(assistant: Assistant, pieces: List<String>): JSONObject {
    val reply = checkNotNull(assistant.lastReply)
    check(pieces.joinToString("") == reply.text)
    check(assistant.messages.last() == Message("assistant", reply.text))
    val speed = reply.speed
    return JSONObject().put("text", reply.text).put("ending", reply.ending.name).put("fed", speed.promptTokens)
        .put("drafted", speed.drafted).put("accepted", speed.accepted).put("forgotten", reply.forgottenTurns)
}

private fun model(loaded: Loaded): ChatModel {
    val eosIds = loaded.bundle.index.eosIds
    val manifest = loaded.bundle.manifest
    if (manifest.form == "explicit") {
        return ExplicitChat(loaded.session, loaded.program, loaded.tokenizer, loaded.template, eosIds.toSet(), Sampler.GREEDY)
    }
    val ends = eosIds.map { checkNotNull(loaded.tokenizer.textOf(it)) }.toSet()
    return ResidentChat(RemoteRunner(), loaded.tokenizer, loaded.template, ends, manifest.window, manifest.maxTokens)
}

/** ExecuTorch's stock runner, which Python drives: pieces come back one by one, then its own count of tokens. */
private class RemoteRunner : TextRunner {
    override fun generate(prompt: String, sequenceLength: Int, onPiece: (String) -> Unit): TextRunner.Counts {
        val done = ask(JSONObject().put("generate", prompt).put("sequence_length", sequenceLength))
        list(done, "pieces").forEach { onPiece(it as String) }
        return TextRunner.Counts(done.getInt("prompt"), done.getInt("generated"))
    }

    override fun reset() {
        ask(JSONObject().put("reset", true))
    }

    override fun stop() = Unit // the pieces were made already

    override fun close() = Unit
}
