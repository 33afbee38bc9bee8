package org.lfm2export.demo.screen

import android.app.Activity
import android.content.Intent
import android.net.Uri
import android.os.Bundle as SavedInstance
import android.os.Debug
import android.os.Handler
import android.os.Looper
import java.io.File
import java.util.concurrent.Executor
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.cancel
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.json.JSONArray
import org.json.JSONException
import org.lfm2export.kit.Assistant
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.chat.ChatTemplate
import org.lfm2export.kit.chat.Ending
import org.lfm2export.kit.chat.Message
import org.lfm2export.kit.chat.OnFull
import org.lfm2export.kit.chat.Reply

/** The whole app: pick a bundle, chat with it, check its parity on this device. */
class MainActivity : Activity() {
    private lateinit var screen: Screen
    private val handler = Handler(Looper.getMainLooper())
    private val scope = CoroutineScope(SupervisorJob() + Executor { handler.post(it) }.asCoroutineDispatcher()) // of the screen's thread
    private var assistant: Assistant? = null
    private lateinit var loaded: String // what the status line says
    private var onStop = {}

    override fun onCreate(savedInstanceState: SavedInstance?) {
        super.onCreate(savedInstanceState)
        screen = Screen(this)
        loaded = noBundle()
        setContentView(screen.root)
        screen.pick.setOnClickListener { pick() }
        screen.folder.setOnClickListener { busy("Verifying and loading …") { load(pushedFolder()) } }
        screen.send.setOnClickListener { send() }
        screen.stop.setOnClickListener { onStop() }
        screen.reset.setOnClickListener { busy("Resetting …") { newConversation() } }
        screen.parity.setOnClickListener { busy("Replaying golden cases …") { checkParity() } }
        ready()
    }

    override fun onDestroy() {
        scope.cancel()
        assistant?.close()
        super.onDestroy()
    }

    private fun pick() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        startActivityForResult(intent, PICK)
    }

    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == PICK && resultCode == RESULT_OK && uri != null) busy("Unpacking …") { unpack(uri) }
    }

    private suspend fun unpack(uri: Uri) {
        val target = File(filesDir, "bundle")
        unload() // the old model goes first: its file is about to be replaced
        val stream = withContext(Dispatchers.IO) { contentResolver.openInputStream(uri) } ?: throw Refusal("$uri: cannot be read")
        var shown = -1L
        stream.use {
            Assistant.unpack(it.buffered(), target) { done, total ->
                val percent = if (total > 0) 100 * done / total else 0
                if (percent != shown) handler.post { screen.status.text = "Unpacking … $percent %" }
                shown = percent
            }
        }
        load(target)
    }

    private suspend fun load(folder: File) {
        unload()
        val opened = Assistant.open(folder)
        assistant = opened
        screen.clearConversation()
        val index = opened.bundle.index
        val random = if (index.randomWeights) ", random weights" else ""
        loaded = "${index.source}$random: ${index.form} form, window ${index.window}, every file verified"
    }

    private suspend fun unload() {
        assistant?.close()?.join()
        assistant = null
        loaded = noBundle()
    }

    private fun send() {
        val current = assistant ?: return
        val text = screen.message.text.toString()
        if (text.isEmpty()) return
        val tools = try {
            JSONArray(screen.tools.text.toString().ifBlank { "[]" }).let { list -> List(list.length()) { list.get(it) } }
        } catch (error: JSONException) {
            return failed(Refusal("tools: ${error.message}", error))
        }
        val message = Message(if (screen.asTool.isChecked) "tool" else "user", text)
        val onFull = if (screen.forgetting.isChecked) OnFull.FORGET else OnFull.STOP
        screen.message.text.clear()
        screen.say("\n${message.role}: $text\nassistant: ")
        busy("Answering …", onStop = current::stop) { // what was said stays
            if (current.messages.isEmpty()) current.begin(screen.system.text.toString(), tools, onFull)
            current.say(message, MOST_TOKENS, screen.drafting.isChecked && current.verifiesDrafts).collect { screen.say(it) }
            current.lastReply?.let(::answered)
        }
    }

    private fun answered(reply: Reply) {
        val note = when (reply.ending) {
            Ending.COMPLETE -> ""
            Ending.LIMIT -> " [cut at $MOST_TOKENS tokens]"
            Ending.WINDOW -> " [the window is full; start a new conversation]"
            Ending.STOPPED -> " [stopped]"
        }
        screen.say(note + "\n")
        if (reply.forgottenTurns > 0) screen.say("(forgotten to make room: ${reply.forgottenTurns} of the oldest turns)\n")
        val call = ChatTemplate.toolCall(reply.text)
        screen.asTool.isChecked = call != null
        if (call != null) screen.say("(the model calls $call: type the answer)\n")
        screen.figures.text = reply.speed.line() + memory()
    }

    private suspend fun newConversation() {
        assistant?.begin()
        screen.clearConversation()
        screen.asTool.isChecked = false
        screen.figures.text = memory().removePrefix(", ")
    }

    private suspend fun checkParity() {
        val report = assistant?.checkParity() ?: return
        screen.say("\n" + report.lines().joinToString("\n") + "\n")
        screen.figures.text = memory().removePrefix(", ")
    }

    /** Do [action] with the buttons off but *Stop*, which does [onStop], by default gives it up. */
    private fun busy(note: String, onStop: (() -> Unit)? = null, action: suspend () -> Unit) {
        screen.status.text = note
        enable(busy = true)
        val job = scope.launch {
            try {
                action()
                ready()
            } catch (error: Exception) {
                failed(error)
            } catch (error: LinkageError) { // a native library that is missing, or of another version
                failed(error)
            } catch (error: OutOfMemoryError) {
                failed(error)
            }
        }
        this.onStop = onStop ?: { job.cancel() }
    }

    private fun failed(error: Throwable) {
        ready()
        val what = if (error is CancellationException) "stopped" else error.message ?: error.javaClass.simpleName
        screen.say("\n[$what]\n")
    }

    private fun ready() {
        screen.status.text = loaded
        enable(busy = false)
    }

    private fun enable(busy: Boolean) = screen.enable(loaded = assistant != null, busy, drafts = assistant?.verifiesDrafts == true)

    private fun memory() = ", memory %.0f MB".format(Debug.getPss() / 1024.0)

    private fun noBundle() = "No bundle. Pick one, or push an unpacked one to ${pushedFolder()}"

    private fun pushedFolder() = File(getExternalFilesDir(null), "bundle")

    private companion object {
        const val PICK = 1
        const val MOST_TOKENS = 512
    }
}
