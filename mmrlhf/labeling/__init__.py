"""`mmrlhf label`: annotators label answers about images on a web page.

Each module imports only those before it:

tasks          tasks from rows of any format, and their form in the store
other_exports  rows of Label Studio's and Argilla's exports
store          one SQLite file: tasks, images, annotators, and events that are only appended
schedule       which task an annotator gets next
assignments    tasks shown, answers recorded once, undo: the store and the schedule together
typed_facts    facts from a typed sentence
labels         the labels of each mode, checked, from a submitted form
visible_text   hostile text as text
guard          addresses, hosts, origins, sizes and headers of requests
sessions       who an annotator is: pseudonyms, codes and cookies
pages          what a task's page shows
app            the routes
results        labels of a store as votes, preferences, claims and facts
agreement      Krippendorff's alpha, gold questions, sides and speed
"""
