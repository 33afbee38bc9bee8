package org.lfm2export.demo.screen

import android.app.Activity
import android.text.InputType
import android.view.View
import android.view.ViewGroup.LayoutParams.MATCH_PARENT
import android.view.ViewGroup.LayoutParams.WRAP_CONTENT
import android.widget.Button
import android.widget.CheckBox
import android.widget.EditText
import android.widget.HorizontalScrollView
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView

/** The views of the one screen: what is loaded, the conversation, what to say, the buttons, and a line of figures. */
class Screen(private val activity: Activity) {
    val status = text("")
    val figures = text("")
    val system = field("System prompt (may be empty)")
    val tools = field("Tools: a JSON list (may be empty)")
    val message = field("Message")
    val drafting = CheckBox(activity).apply { text = "guess ahead (the same reply, sooner where it repeats what was said)" }
    val forgetting = CheckBox(activity).apply { text = "forget the oldest turns when the window is full (a new conversation heeds it)" }
    val asTool = CheckBox(activity).apply { text = "send as a tool's answer" }
    val pick = button("Pick bundle")
    val folder = button("Load pushed folder")
    val send = button("Send")
    val stop = button("Stop")
    val reset = button("New conversation")
    val parity = button("Parity check")
    private val conversation = text("").apply { setTextIsSelectable(true) }
    private val scroller = ScrollView(activity).apply { addView(conversation) }

    val root: View = column(
        status,
        sideways(row(pick, folder)),
        system,
        tools,
        scroller.apply { layoutParams = LinearLayout.LayoutParams(MATCH_PARENT, 0, 1f) },
        message,
        asTool,
        drafting,
        forgetting,
        sideways(row(send, stop, reset, parity)),
        figures,
    ).apply {
        fitsSystemWindows = true // neither the keyboard nor the bars may cover the buttons
    }

    /** Add to the conversation and keep its end in sight. */
    fun say(text: String) {
        conversation.append(text)
        scroller.post { scroller.fullScroll(View.FOCUS_DOWN) }
    }

    fun clearConversation() {
        conversation.text = ""
    }

    /** What can be done at the moment. */
    fun enable(loaded: Boolean, busy: Boolean, drafts: Boolean) {
        for (view in listOf(pick, folder)) view.isEnabled = !busy
        for (view in listOf(send, reset, parity)) view.isEnabled = loaded && !busy
        stop.isEnabled = busy
        drafting.visibility = if (drafts) View.VISIBLE else View.GONE
    }

    private fun text(content: String) = TextView(activity).apply { text = content }

    private fun button(label: String) = Button(activity).apply { text = label }

    private fun field(label: String) = EditText(activity).apply {
        hint = label
        maxLines = 4
        inputType = InputType.TYPE_CLASS_TEXT or InputType.TYPE_TEXT_FLAG_MULTI_LINE
    }

    private fun row(vararg views: View) = LinearLayout(activity).apply { views.forEach(::addView) }

    private fun sideways(view: View) = HorizontalScrollView(activity).apply { addView(view) }

    private fun column(vararg views: View) = LinearLayout(activity).apply {
        orientation = LinearLayout.VERTICAL
        for (view in views) addView(view, view.layoutParams ?: LinearLayout.LayoutParams(MATCH_PARENT, WRAP_CONTENT))
    }
}
