package org.lfm2export.kit.bundle

import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** A JSON object that says in one line what is missing or of the wrong type. [where] names it in errors. */
class Json(private val values: JSONObject, private val where: String) {
    val names: List<String> get() = values.keys().asSequence().toList()

    fun has(name: String): Boolean = values.has(name) && !values.isNull(name)

    fun text(name: String): String = values.opt(name) as? String ?: expected(name, "text")

    fun flag(name: String): Boolean = values.opt(name) as? Boolean ?: expected(name, "true or false")

    fun whole(name: String): Long =
        when (val value = values.opt(name)) {
            is Int -> value.toLong()
            is Long -> value
            else -> expected(name, "a whole number")
        }

    /** A whole number from 1 up to a billion: a count that can be held in an Int. */
    fun count(name: String): Int {
        val value = whole(name)
        if (value !in 1..MOST) refuse(name, "$value, expected 1 to $MOST")
        return value.toInt()
    }

    fun number(name: String): Double = (values.opt(name) as? Number)?.toDouble() ?: expected(name, "a number")

    fun child(name: String): Json = Json(values.opt(name) as? JSONObject ?: expected(name, "an object"), "$where: $name")

    fun children(name: String): List<Json> =
        items(name).mapIndexed { at, value ->
            Json(value as? JSONObject ?: expected(name, "a list of objects"), "$where: $name[$at]")
        }

    fun texts(name: String): List<String> = items(name).map { it as? String ?: expected(name, "a list of texts") }

    fun wholes(name: String): List<Long> =
        items(name).map {
            when (it) {
                is Int -> it.toLong()
                is Long -> it
                else -> expected(name, "a list of whole numbers")
            }
        }

    fun numbers(name: String): List<Double> =
        items(name).map { (it as? Number)?.toDouble() ?: expected(name, "a list of numbers") }

    fun items(name: String): List<Any> {
        val list = values.opt(name) as? JSONArray ?: expected(name, "a list")
        return (0 until list.length()).map { list.get(it) }
    }

    fun refuse(name: String, problem: String): Nothing = throw Refusal("$where: $name: $problem")

    private fun expected(name: String, kind: String): Nothing =
        refuse(name, if (has(name)) "expected $kind" else "missing")

    companion object {
        private const val MOST = 1_000_000_000L

        /** Refusal for text that is not one JSON object. */
        fun parse(text: String, where: String): Json =
            try {
                Json(JSONObject(text), where)
            } catch (error: JSONException) {
                throw Refusal("$where: not valid JSON: ${error.message?.lineSequence()?.first()?.take(120)}", error)
            } catch (error: StackOverflowError) {
                throw Refusal("$where: JSON nested too deeply", error)
            }
    }
}
