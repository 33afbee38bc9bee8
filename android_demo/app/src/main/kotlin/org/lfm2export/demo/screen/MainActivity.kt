package org.lfm2export.demo.screen

import android.app.Activity
import android.content.Intent
import android.net.Uri
import android.os.Bundle as SavedInstance
import android.os.Debug
import java.io.File
import java.util.concurrent.CancellationException
import org.json.JSONArray
import org.json.JSONException
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.bundle.Unpacker
import org.lfm2export.kit.chat.ChatTemplate
import org.lfm2export.kit.chat.Ending
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.Reply
import org.lfm2export.kit.device.LoadedModel

/** The whole app: pick a bundle, chat with it, check its parity on this device. */
class MainActivity : Activity() {
    private lateinit var screen: Screen
    private lateinit var worker: Worker

    @Volatile private var model: LoadedModel? = null // set by the worker
    private val messages = mutableListOf<Message>()

    override fun onCreate(savedInstanceState: SavedInstance?) {
        super.onCreate(savedInstanceState)
        screen = Screen(this)
        worker = Worker(::failed)
        setContentView(screen.root)
        screen.pick.setOnClickListener { pick() }
        screen.folder.setOnClickListener { load(pushedFolder()) }
        screen.send.setOnClickListener { send() }
        screen.stop.setOnClickListener { stop() }
        screen.reset.setOnClickListener { newConversation() }
        screen.parity.setOnClickListener { checkParity() }
        screen.status.text = "No bundle. Pick one, or push an unpacked one to ${pushedFolder()}"
        ready()
    }

    override fun onDestroy() {
        model?.chat?.stop()
        worker.finish(::unload)
        super.onDestroy()
    }

    private fun pick() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        startActivityForResult(intent, PICK)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == PICK && resultCode == RESULT_OK && uri != null) unpack(uri)
    }

    private fun unpack(uri: Uri) {
        val target = File(filesDir, "bundle")
        // the old model goes first: its file is about to be replaced
        busy("Unpacking …", { unload(); unpackTo(uri, target) }) { load(target) }
    }

    private fun unpackTo(uri: Uri, target: File) {
        var shown = -1L
        val unpacker = Unpacker(cancelled = worker::isCancelled) { done, total ->
            val percent = if (total > 0) 100 * done / total else 0
            if (percent != shown) worker.show { screen.status.text = "Unpacking … $percent %" }
            shown = percent
        }
        val stream = contentResolver.openInputStream(uri) ?: throw Refusal("$uri: cannot be read")
        stream.use { unpacker.unpack(it.buffered(), target) }
    }

    private fun load(folder: File) {
        busy("Verifying and loading …", { unload(); LoadedModel.open(folder, worker::isCancelled).also { model = it } }) {
            messages.clear()
            screen.clearConversation()
            val index = it.bundle.index
            val random = if (index.randomWeights) ", random weights" else ""
            screen.status.text = "${index.source}$random: ${index.form} form, window ${index.window}, every file verified"
        }
    }

    private fun unload() {
        model?.close()
        model = null
    }

    private fun send() {
        val current = model ?: return
        val text = screen.message.text.toString()
        val tools = try {
            tools()
        } catch (error: JSONException) {
            return failed(Refusal("tools: ${error.message}", error))
        }
        val turn = turnOf(text) ?: return
        if (messages.isEmpty()) screen.system.text.toString().let { if (it.isNotEmpty()) messages += Message("system", it) }
        messages += turn
        screen.message.text.clear()
        screen.say("\n${turn.role}: $text\nassistant: ")
        val asked = messages.toList()
        val drafting = screen.drafting.isChecked
        busy("Answering …", { answer(current, asked, tools, drafting) }) { answered(it) }
    }

    private fun turnOf(text: String): Message? =
        if (text.isEmpty()) null else Message(if (screen.asTool.isChecked) "tool" else "user", text)

    private fun tools(): List<Any> {
        val list = JSONArray(screen.tools.text.toString().ifBlank { "[]" })
        return (0 until list.length()).map { list.get(it) }
    }

    private fun answer(current: LoadedModel, asked: List<Message>, tools: List<Any>, drafting: Boolean): Reply =
        try {
            current.chat.reply(asked, tools, MOST_TOKENS, drafting && current.chat.verifiesDrafts) { piece -> worker.show { screen.say(piece) } }
        } catch (error: Exception) {
            worker.show { messages.removeAt(messages.lastIndex) } // a turn that failed has not taken place
            throw error
        }

    private fun answered(reply: Reply) {
        messages += Message("assistant", reply.text)
        val note = when (reply.ending) {
            Ending.COMPLETE -> ""
            Ending.LIMIT -> " [cut at $MOST_TOKENS tokens]"
            Ending.WINDOW -> " [the window is full; start a new conversation]"
            Ending.STOPPED -> " [stopped]"
        }
        screen.say(note + "\n")
        val call = ChatTemplate.toolCall(reply.text)
        screen.asTool.isChecked = call != null
        if (call != null) screen.say("(the model calls $call: type the answer)\n")
        screen.figures.text = reply.speed.line() + memory()
    }

    private fun newConversation() {
        val current = model ?: return
        busy("Resetting …", { current.chat.reset() }) {
            messages.clear()
            screen.clearConversation()
            screen.asTool.isChecked = false
            screen.figures.text = memory().removePrefix(", ")
        }
    }

    private fun checkParity() {
        val current = model ?: return
        busy("Replaying golden cases …", { current.checkParity(worker::isCancelled) }) {
            screen.say("\n" + it.lines().joinToString("\n") + "\n")
            screen.figures.text = memory().removePrefix(", ")
        }
    }

    private fun stop() {
        worker.cancel()
        model?.chat?.stop()
    }

    private fun <T> busy(note: String, job: () -> T, then: (T) -> Unit) {
        val before = screen.status.text
        screen.status.text = note
        enable(busy = true)
        worker.run(job) {
            screen.status.text = before
            ready()
            then(it)
        }
    }

    private fun failed(error: Throwable) {
        ready()
        val what = if (error is CancellationException) "stopped" else error.message ?: error.javaClass.simpleName
        screen.status.text = if (model == null) "No bundle loaded" else "Loaded"
        screen.say("\n[$what]\n")
    }

    private fun ready() = enable(busy = false)

    private fun enable(busy: Boolean) = screen.enable(loaded = model != null, busy, drafts = model?.chat?.verifiesDrafts == true)

    private fun memory() = ", memory %.0f MB".format(Debug.getPss() / 1024.0)

    private fun pushedFolder() = File(getExternalFilesDir(null), "bundle")

    private companion object {
        const val PICK = 1
        const val MOST_TOKENS = 512
    }
}
